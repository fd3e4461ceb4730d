"""The table of initial layers matches the tests' backbones and the default layers of `pal-fast train`."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from training_loops import test_convolutional_backbones, test_modern_backbones

TRAINED = [*test_convolutional_backbones.BACKBONES, *test_modern_backbones.BACKBONES]
PAGE = (Path(__file__).parents[2] / "docs" / "training_loops.md").read_text()


def table() -> list[tuple[str, str, str]]:
    """(library, network, initial layer) of each row except Hugging Face's, whose network cannot be built by name."""
    rows = PAGE.partition("| network | layer to begin with | layout |\n")[2].partition("\n\n")[0].splitlines()[1:]
    found = []
    for row in rows:
        networks, layers = row.strip("|").split("|")[:2]
        libraries, names = re.findall(r"\b(?:torchvision|timm)\b", networks), re.findall(r"`([\w*]+)`", networks)
        assert libraries or networks.strip().startswith("Hugging Face"), row
        found += [(library, name, re.findall(r"`([^`]+)`", layers)[0]) for library in libraries for name in names]
    return found


def is_trained(library: str, name: str, layer: str) -> bool:
    return any((b.library, b.layer) == (library, layer) and fnmatch(b.name, name) for b in TRAINED)


@pytest.mark.parametrize("backbone", TRAINED, ids=lambda b: f"{b.library} {b.name}")
def test_every_backbone_trained_in_the_tests_is_in_the_table(backbone):
    rows = [layer for library, name, layer in table() if library == backbone.library and fnmatch(backbone.name, name)]
    assert rows == [backbone.layer]


def test_rows_that_no_test_trains_are_marked_and_equal_the_default_layers():
    pytest.importorskip("accelerate", reason="accelerate is not installed (extra train)")
    from pal_fast.training.networks import DEFAULT_LAYERS

    others = [row for row in table() if not is_trained(*row)]
    for library, name, layer in others:
        defaults = [value for kind, value in DEFAULT_LAYERS[library].items() if re.match(kind, name)]
        assert defaults[:1] == [layer], name
    (sentence,) = re.findall(r"except for timm's\s(.*?): for", PAGE, flags=re.DOTALL)
    assert [("timm", name) for name in re.findall(r"`([^`]+)`", sentence)] == [row[:2] for row in others]

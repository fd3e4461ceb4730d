"""The public names and signatures are those of the specification (DESIGN, section 3), word for word."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest
import torch

import pal_fast

SIGNATURES = {
    "PALLoss": """model, layer, *, attribution="grad_input", absolute=True, channels="mean", channel_count=None,
        score="pearson", scale="sum", target="sum", image_size=None, sigma=None, combine="sum", normalize="none",
        regions=None, weight=1.0, reduction="mean", second_order="exact", backend=None""",
    "PALLoss.forward": """self, logits, landmarks=None, *, heatmap=None, labels=None, visible=None,
        sample_weight=None""",
    "pal_loss": """activation, gradient, heatmap=None, *, landmarks=None, image_size=None, visible=None, weights=None,
        sample_weight=None, attribution="grad_input", absolute=True, channels="mean", channel_count=None,
        score="pearson", scale="sum", sigma=None, combine="sum", normalize="none", reduction="mean", backend=None""",
    "attribution_map": """activation, gradient, *, attribution="grad_input", absolute=True, channels="mean",
        channel_count=None""",
    "landmark_heatmap": """landmarks, size, *, image_size=None, sigma=None, visible=None, weights=None, combine="sum",
        normalize="none", backend=None""",
    "backends": "",
}

#: Parameters beyond the specification: the head for finite differences, and the layout of a layer's output.
ADDED = {"PALLoss": {"head": None, "layout": "auto"}}


def parameters(function: object) -> list[tuple[str, object, object]]:
    """Name, kind and default of each parameter."""
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]  # type: ignore[arg-type]


def specified(text: str) -> list[tuple[str, object, object]]:
    names: dict[str, object] = {}
    exec(f"def function({text}): ...", names)
    return parameters(names["function"])


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_match_the_specification(name):
    function: object = pal_fast
    for part in name.split("."):
        function = getattr(function, part)
    added = ADDED.get(name, {})
    given = parameters(function)
    assert [p for p in given if p[0] not in added] == specified(SIGNATURES[name])
    assert {p[0]: p[2] for p in given if p[0] in added} == added


def test_all_lists_exactly_the_public_names():
    assert set(pal_fast.__all__) == {
        *(name for name in SIGNATURES if "." not in name),
        *("data", "landmarks", "metrics", "visualize"),
        *("BackendStatus", "__version__", "attribute"),
        *("FlatLossWarning", "LayerReport", "NotReadyError", "Report"),
    }


SUBMODULES = ("compiled", "data", "faces", "landmarks", "metrics", "nn", "visualize")


#: Imports PyTorch once, then accesses each submodule in a forked child without the others.
SUBMODULE_ACCESS = """
import importlib.util, os, sys
import pal_fast

for submodule in sys.argv[1:]:
    assert submodule in dir(pal_fast), submodule
    if submodule == "metrics" and not importlib.util.find_spec("torchmetrics"):
        continue
    child = os.fork()
    if child == 0:
        assert f"pal_fast.{submodule}" not in sys.modules, submodule
        os._exit(getattr(pal_fast, submodule).__name__ != f"pal_fast.{submodule}")
    assert os.waitpid(child, 0)[1] == 0, submodule
"""


def test_submodules_are_imported_on_first_access():
    done = subprocess.run(
        [sys.executable, "-c", SUBMODULE_ACCESS, *SUBMODULES], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("submodule", SUBMODULES)
def test_submodules_exist_and_their_public_names_have_docstrings(submodule):
    if submodule == "metrics":
        pytest.importorskip("torchmetrics", reason="the metrics need torchmetrics")
    if submodule == "data":
        pytest.importorskip("torchvision", reason="Landmarks are a type of torchvision's")
    module = getattr(pal_fast, submodule)
    assert module is importlib.import_module(f"pal_fast.{submodule}")
    for name in module.__all__:
        assert getattr(module, name).__doc__ or not callable(getattr(module, name)), (
            f"{submodule}.{name} has no docstring"
        )


def test_there_are_four_backends_and_each_gives_its_status():
    found = pal_fast.backends()
    assert list(found) == ["cuda", "cpu", "triton", "reference"]
    assert all(status.detail for status in found.values())
    assert found["reference"].available
    assert found["cpu"].available, found["cpu"].detail
    assert found["cuda"].available <= torch.cuda.is_available()


def test_an_unknown_name_raises_attribute_error():
    with pytest.raises(AttributeError, match="palloss"):
        pal_fast.palloss  # noqa: B018

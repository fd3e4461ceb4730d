"""Everything that the README and the docs mention exists: files, links, options, environment variables and names."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

import pal_fast
from pal_fast import cli, constants
from pal_fast.attribution import targets

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "NOTES.md"]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_point_to_existing_files(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose(page))
    gone = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not gone


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_mentioned_paths_exist(page):
    folders = "csrc|kernels|pal_fast|tests|benchmarks|docs"
    paths = re.findall(rf"`((?:{folders})/[\w./*]*)`", prose(page))
    gone = [path for path in paths if not list(ROOT.glob(path.rstrip("/")))]
    assert not gone


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_mentioned_names_of_the_package_exist(page):
    for name in set(re.findall(r"`(pal_fast(?:\.\w+)+)", prose(page))):
        found: object = pal_fast
        for part in name.split(".")[1:]:
            if inspect.ismodule(found) and not hasattr(found, part):
                found = importlib.import_module(f"{found.__name__}.{part}")
            else:
                found = getattr(found, part)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_keyword_arguments_in_the_text_are_accepted_by_a_public_function(page):
    """For `channels="half"` in the text, an argument of that name exists and the value is one of its choices."""
    signatures = [inspect.signature(f) for f in (pal_fast.PALLoss, pal_fast.PALLoss.forward, pal_fast.pal_loss)]
    signatures += [inspect.signature(f) for f in (pal_fast.landmark_heatmap, pal_fast.attribution_map)]
    known = set().union(*(signature.parameters for signature in signatures))
    choices = {name.lower(): getattr(constants, name) for name in dir(constants) if name.isupper()}
    choices |= {"target": targets.TARGETS, "backend": constants.BACKENDS}
    for name, value in re.findall(r"`(\w+)=\"(\w+)\"`", prose(page)):
        if name in known and name in choices:
            assert value in choices[name], f'{name}="{value}"'


def readme_rows() -> dict[str, list[str]]:
    """The rows of the README's tables: the first cell, without backticks, to the other cells."""
    rows = [line.strip().strip("|").split("|") for line in README.read_text().splitlines() if line.startswith("|")]
    return {cells[0].strip().strip("`"): [cell.strip() for cell in cells[1:]] for cells in rows}


@pytest.mark.parametrize(
    ("option", "choices"),
    [
        ("attribution", constants.ATTRIBUTION),
        ("channels", constants.CHANNELS),
        ("score", constants.SCORE),
        ("scale", constants.SCALE),
        ("target", targets.TARGETS),
        ("backend", constants.BACKENDS),
    ],
)
def test_the_options_table_lists_every_choice(option, choices):
    assert sorted(re.findall(r'`"(\w+)"`', readme_rows()[option][0])) == sorted(choices)


def test_the_options_table_names_every_option_of_the_loss():
    named = {name for key in readme_rows() for name in re.findall(r"\w+", key)}
    signature = inspect.signature(pal_fast.PALLoss)
    missing = set(signature.parameters) - {"model", "layer"} - named
    assert not missing


def test_the_options_table_gives_the_defaults_first():
    rows = readme_rows()
    for name, parameter in inspect.signature(pal_fast.PALLoss).parameters.items():
        first = re.findall(r'`"(\w+)"`', rows[name][0])[:1] if name in rows else []
        if first and isinstance(parameter.default, str):
            assert first == [parameter.default], name


def test_the_table_of_commands_lists_every_command():
    listed = re.findall(r"pal-fast (\w+)", " ".join(key for key in readme_rows() if key.startswith("pal-fast ")))
    assert sorted(listed) == sorted(command.NAME for command in cli.commands())


def test_the_documented_environment_variables_are_those_the_build_reads():
    rows, build = readme_rows(), (ROOT / "setup.py").read_text()
    named = {name for name in rows if name.startswith("PAL_FAST_")}
    assert named <= set(re.findall(r"PAL_FAST_\w+", build))
    (architectures,) = re.findall(r'"PAL_FAST_ARCHS", "([\d;a-z]+)"', build)
    assert f"`{architectures}`" in rows["PAL_FAST_ARCHS"][0]
    for mode in ("auto", "1", "0", "pypi"):
        assert f"`{mode}`" in rows["PAL_FAST_CUDA"][0]
        assert f'"{mode}"' in build


def test_the_reference_page_documents_every_public_name():
    page = (ROOT / "docs" / "api.md").read_text()
    missing = [name for name in pal_fast.__all__ if not name.startswith("_") and f"::: pal_fast.{name}" not in page]
    assert not missing

"""Each version is defined in one place; files that cannot refer to it must agree with it."""

from __future__ import annotations

import re
from collections import defaultdict

from support.pyproject import ROOT, listed, read, requirements


def test_no_versioned_requirement_is_repeated():
    places = defaultdict(list)
    for group, wanted in listed().items():
        for requirement in wanted:
            if requirement.specifier and group != "build-system":
                places[requirement.name].append(group)
    assert len(places) > 10
    assert {name: groups for name, groups in places.items() if len(groups) > 1} == {}


def test_a_package_required_with_a_version_is_required_with_it_everywhere():
    everywhere = [requirement for wanted in listed().values() for requirement in wanted]
    versioned = {requirement.name for requirement in everywhere if requirement.specifier}
    assert [str(r) for r in everywhere if r.name in versioned and not r.specifier] == []


def test_build_requirements_equal_those_of_the_package_and_its_extras():
    """[build-system] cannot refer to other tables, so it repeats the versions."""
    project = {r.name: str(r) for group, wanted in listed().items() if group != "build-system" for r in wanted}
    build = {name: str(requirement) for name, requirement in requirements("build-system").items()}
    assert build == {name: project[name] for name in build}


def test_the_extension_targets_the_oldest_supported_pytorch_and_python():
    setup = (ROOT / "setup.py").read_text()
    (version,) = requirements("dependencies")["torch"].specifier
    major, minor = map(int, version.version.split("."))
    assert version.operator == ">="
    assert re.search(r'^TORCH_STABLE_VERSION = "(\w+)"', setup, re.MULTILINE)[1] == f"0x{major:02x}{minor:02x}{0:012x}"

    python = read()["project"]["requires-python"].removeprefix(">=")
    major, minor = map(int, python.split("."))
    assert re.search(r'^PYTHON_LIMITED_API = "(\w+)"', setup, re.MULTILINE)[1] == f"0x{major:02x}{minor:02x}0000"
    assert f'return "cp{major}{minor}", "abi3"' in setup
    tools = read()["tool"]
    assert tools["ruff"]["target-version"] == f"py{major}{minor}"
    assert tools["mypy"]["python_version"] == python


def test_the_readme_and_the_limits_page_name_those_versions():
    (torch,) = requirements("dependencies")["torch"].specifier
    python = read()["project"]["requires-python"].removeprefix(">=")
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"every Python from {python} and every PyTorch from {torch.version}" in readme
    assert f"stable ABI of {torch.version}:" in (ROOT / "docs" / "limits.md").read_text()

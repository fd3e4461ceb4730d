"""pyproject.toml as parsed for the tests."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]


def read() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def listed() -> dict[str, list[Requirement]]:
    """Every requirement, keyed by its section: "build-system", "dependencies" or an extra's name."""
    content = read()
    project = content["project"]
    groups = {"build-system": content["build-system"]["requires"], "dependencies": project["dependencies"]}
    groups |= project["optional-dependencies"]
    return {group: list(map(Requirement, lines)) for group, lines in groups.items()}


def requirements(group: str) -> dict[str, Requirement]:
    """A group's requirements by name."""
    return {requirement.name: requirement for requirement in listed()[group]}


def satisfied(requirement: Requirement) -> bool:
    """Whether the installed version satisfies it."""
    return requirement.specifier.contains(version(requirement.name), prereleases=True)

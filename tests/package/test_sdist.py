"""The source distribution holds everything needed for the wheel, the tests, the benchmarks and the documentation."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from support.pyproject import requirements, satisfied

ROOT = Path(__file__).parents[2]
FOLDERS = ("csrc", "kernels", "pal_fast", "tests", "benchmarks", "docs")
FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "mkdocs.yml")


def generated_files(folder: str, names: list[str]) -> set[str]:
    """The files of a tree that are not sources."""
    built = {"build", "dist", "site", "runs", "shared", "__pycache__"}
    return {name for name in names if name in built or name.startswith(".") or name.endswith((".so", ".egg-info"))}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A clean copy of the tree, as a checkout has it."""
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("tree") / "pal_fast", ignore=generated_files))


def test_the_sdist_holds_every_source(sources, tmp_path):
    needed = requirements("build-system")["setuptools"]
    if not satisfied(needed):
        pytest.skip(f"the build needs {needed}")
    code = f"from setuptools import build_meta; print(build_meta.build_sdist({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=sources, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / done.stdout.split()[-1]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    files = [path for folder in FOLDERS for path in (sources / folder).rglob("*") if path.is_file()]
    wanted = {path.relative_to(sources).as_posix() for path in files} | set(FILES)
    assert len(wanted) > 200
    assert not wanted - held
    assert not [name for name in held if name.endswith((".so", ".o", ".pyc"))]

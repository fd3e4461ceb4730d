"""The emulated kernels, compiled once a session."""

from __future__ import annotations

import pytest
from support import emulated


@pytest.fixture(scope="session")
def build_directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.getbasetemp() / "emulated")


@pytest.fixture
def namespace(build_directory: str, seed: int) -> str:
    """The namespace of the emulated operators, with blocks and threads shuffled anew."""
    emulated.machine["seed"] = seed % 2**31
    emulated.machine["processors"] = 1 + seed % 4
    return emulated.operators(build_directory)

"""The emulated kernels, compiled once per session."""

from __future__ import annotations

import os

import pytest
from support import emulated

from pal_fast import dispatch


@pytest.fixture(scope="session")
def build_directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The build directory; set PAL_FAST_EMULATED_BUILD to keep one and recompile only what changed."""
    return os.environ.get("PAL_FAST_EMULATED_BUILD") or str(tmp_path_factory.getbasetemp() / "emulated")


@pytest.fixture
def namespace(build_directory: str, seed: int) -> str:
    """The namespace of the emulated operators, with blocks and threads shuffled anew."""
    emulated.machine["seed"] = seed % 2**31
    emulated.machine["processors"] = 1 + seed % 4
    emulated.machine["warpgroups"] = False
    return emulated.operators(build_directory)


@pytest.fixture
def emulated_backend(namespace: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A name for `backend=`: "cuda", which for this test takes CPU tensors to the emulated kernels."""
    monkeypatch.setitem(dispatch.NAMESPACE, "cuda", namespace)
    why_not = dispatch.why_not
    monkeypatch.setattr(dispatch, "why_not", lambda name, device: "" if name == "cuda" else why_not(name, device))
    emulated.launches.clear()
    return "cuda"

"""Shared by all tests: random inputs from a fresh seed that a failure prints, and poisoned uninitialised memory."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from support.gpu import VIRTUAL
from support.triton_namesake import hide

hide()

ROOT = Path(__file__).resolve().parents[1]


def _import_benchmarks() -> None:
    """Makes `benchmarks` the package of the source tree, and not the folder of its tests.

    The tree itself is not put on the path: its pal_fast would hide the installed one, which is what is tested.
    """
    folder = ROOT / "benchmarks"
    spec = importlib.util.spec_from_file_location(
        "benchmarks", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["benchmarks"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["benchmarks"])


_import_benchmarks()

if VIRTUAL:
    from virtual_gpu import device

    device.install(Path(os.environ["PAL_FAST_VIRTUAL_GPU"]))

#: Set PAL_FAST_TEST_SEED to repeat a run.
SEED = int(os.environ.get("PAL_FAST_TEST_SEED") or random.SystemRandom().randrange(2**31))


def pytest_configure(config: pytest.Config) -> None:
    # Workers of pytest-xdist take the controller's seed.
    os.environ["PAL_FAST_TEST_SEED"] = str(SEED)
    if hasattr(config, "workerinput"):
        # As many workers as cores: threads of their own, and of what they start, would only wait for one another.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)


def pytest_report_header() -> str:
    return f"seed: PAL_FAST_TEST_SEED={SEED}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.failed:
        report.sections.append(("seed", f"PAL_FAST_TEST_SEED={SEED}"))
    return report


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A number of this run and this test: the same wherever in the order the test runs."""
    return random.Random(f"{SEED} {request.node.nodeid}").randrange(2**31)


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def _seeded(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    if VIRTUAL:
        device.reseed(seed)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fresh tensors hold NaN, so that a value which was never written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(9).isnan().all(), "fresh memory is not poisoned, so this test would prove nothing"
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = filled


@pytest.fixture
def computation_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the inner gradient, the loss, the heatmap and a resized prior raise if anything computes them."""
    from pal_fast import engine, ops, reference

    def fail(*given: object, **options: object) -> None:
        raise AssertionError("computed before everything was checked")

    monkeypatch.setattr(engine, "attributed_gradients", fail)
    for module in (ops, reference):
        for function in ("pal_loss", "landmark_heatmap"):
            monkeypatch.setattr(module, function, fail)
    monkeypatch.setattr(torch.nn.functional, "interpolate", fail)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        markers = list(item.iter_markers("gpu"))  # a test's own and its parameters'
        if not markers:
            continue
        if not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and PyTorch sees none"))
        elif VIRTUAL and any(marker.kwargs.get("hardware") for marker in markers):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and this one is virtual"))

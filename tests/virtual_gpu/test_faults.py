"""The virtual GPU executes PTX correctly, and reports the faults of faulty kernels."""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable

import pytest
from virtual_gpu import kernels
from virtual_gpu.device import load_ptx
from virtual_gpu.kernels import numbers

Run = Callable[..., str]


@pytest.fixture
def run(launch: Callable[..., str]) -> Run:
    """run(kernel, blocks, threads, *arrays): what went wrong, or ""."""
    return functools.partial(launch, kernels.PTX)


def test_threads_exchange_through_shared_memory(run: Run) -> None:
    to = numbers(64)
    assert run("exchange", 1, 64, to) == ""
    assert to.tolist() == list(range(63, -1, -1))


def test_a_missing_barrier_is_a_race(run: Run) -> None:
    failure = run("exchange_without_barrier", 1, 64, numbers(64))
    assert "race in shared memory" in failure or "never written" in failure


def test_the_last_block_sums_the_values_stored_by_the_others(run: Run) -> None:
    to, ticket = numbers(1), numbers(1)
    assert run("total", 4, 1, to, numbers(4), ticket) == ""
    assert to.tolist() == [10]
    assert ticket.tolist() == [0]


@pytest.mark.parametrize("kernel", ["total_without_release", "total_without_acquire"])
def test_a_missing_fence_between_blocks_is_a_race(run: Run, kernel: str) -> None:
    assert "a race: a read" in run(kernel, 4, 1, numbers(1), numbers(4), numbers(1))


@pytest.mark.parametrize(
    ("kernel", "threads", "message"),
    [
        ("out_of_bounds", 1, "an access out of bounds: 4 bytes"),
        ("not_aligned", 1, "an access of 8 bytes that is not aligned"),
        ("never_written", 1, "a read of shared memory that was never written"),
        ("past_shared_memory", 1, "an access out of bounds of shared memory"),
        ("stale_cache", 1, "a read through the read-only cache of what this launch has written"),
        ("divergent_barrier", 32, "different barriers"),
        ("absent_lane", 16, "waits for a lane that has left or is not there"),
    ],
)
def test_each_fault_is_reported(run: Run, kernel: str, threads: int, message: str) -> None:
    assert message in run(kernel, 1, threads, numbers(64))


@pytest.mark.parametrize(
    "name", ["tex.2d", "mbarrier.init.shared.b64", "cp.async.bulk.commit_group", "fence.proxy.alias"]
)
def test_an_unknown_instruction_is_refused_by_name(functions: ctypes.CDLL, name: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(f"does not know: {name}")):
        load_ptx(functions, kernels.PTX.replace("shfl.sync.bfly.b32", name))

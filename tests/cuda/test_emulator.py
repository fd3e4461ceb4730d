"""The emulator catches the errors that it is meant to catch."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from support import emulated


@pytest.fixture
def faults(build_directory: str) -> ModuleType:
    return emulated.module("faults", build_directory)


def reverse(faults: ModuleType, with_barrier: bool, seed: int) -> bool:
    """Whether a block reversed its values correctly."""
    tensors = {"from": torch.randn(64), "to": torch.full((64,), float("nan"))}
    faults.reverse(tensors, with_barrier, seed)
    return torch.equal(tensors["to"], tensors["from"].flip(0))


def test_a_missing_barrier_is_detected(faults: ModuleType, seed: int) -> None:
    assert all(reverse(faults, True, seed + i) for i in range(10))
    assert not any(reverse(faults, False, seed + i) for i in range(10))


def total(faults: ModuleType, with_ticket: bool, seed: int) -> bool:
    """Whether four blocks computed the sum of their values."""
    tensors = {"from": torch.randint(9, (128,)).float(), "to": torch.full((1,), float("nan"))}
    tensors |= {"parts": torch.full((4,), float("nan")), "ticket": torch.zeros(1, dtype=torch.int32)}
    faults.total(tensors, with_ticket, seed)
    assert not with_ticket or tensors["ticket"].item() == 0
    return bool(tensors["to"] == tensors["from"].sum())


def test_a_missing_ticket_is_detected(faults: ModuleType, seed: int) -> None:
    assert all(total(faults, True, seed + i) for i in range(20))
    # Without it the fourth block is the last one in a quarter of all orders.
    assert not all(total(faults, False, seed + i) for i in range(20))


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["read", "write", "vector"])
@pytest.mark.parametrize("index", [-4, 16, 2**33])
def test_an_access_out_of_bounds_is_an_error(faults: ModuleType, kind: int, index: int) -> None:
    faults.touch({"memory": torch.randn(16)}, 16, 12, kind)
    with pytest.raises(RuntimeError, match="out of bounds"):
        faults.touch({"memory": torch.randn(16)}, 16, index, kind)


def test_a_vector_that_crosses_the_end_or_is_not_aligned_is_an_error(faults: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="out of bounds"):
        faults.touch({"memory": torch.randn(18)}, 18, 16, 2)
    with pytest.raises(RuntimeError, match="not aligned to 16 bytes"):
        faults.touch({"memory": torch.randn(16)}, 16, 1, 2)


def test_claiming_more_memory_than_was_lent_is_an_error(faults: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="not lent"):
        faults.touch({"memory": torch.randn(16)}, 17, 0, 0)


def test_threads_at_different_barriers_are_an_error(faults: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="different barriers"):
        faults.diverge(True)

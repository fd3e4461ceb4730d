"""Observes and modifies launches: how many there are, and the order in which their programs run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from benchmarks.profiling import gpu_work


@contextmanager
def counted_launches(device: str) -> Iterator[list[str]]:
    """The names of the kernels that run inside: triton's in the interpreter, all of them on a GPU."""
    names: list[str] = []
    if device == "cuda":
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            yield names
            torch.cuda.synchronize()
        names += gpu_work(profile)
        return
    from triton.runtime.interpreter import GridExecutor

    before = GridExecutor.__call__

    def call(self: GridExecutor, *args: object, **kwargs: object) -> None:
        names.append(self.fn.__name__)
        before(self, *args, **kwargs)

    GridExecutor.__call__ = call
    try:
        yield names
    finally:
        GridExecutor.__call__ = before


@contextmanager
def shuffled_programs(seed: int) -> Iterator[None]:
    """Programs of the interpreter run in a random order, as a GPU may run them."""
    from triton.runtime.interpreter import InterpreterBuilder

    before = InterpreterBuilder.set_grid_idx

    def set_grid_idx(self: InterpreterBuilder, x: int, y: int, z: int) -> None:
        order = list(range(self.grid_dim[0]))
        random.Random(seed).shuffle(order)
        before(self, order[x], y, z)

    InterpreterBuilder.set_grid_idx = set_grid_idx
    try:
        yield
    finally:
        InterpreterBuilder.set_grid_idx = before

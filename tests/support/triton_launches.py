"""Observes and modifies launches: how many there are, in which order their programs run, and what they read."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class TileLoad:
    """A program's load of a tile: how many elements of the tensor it reads, the first of them and the last."""

    program: tuple[int, int, int]
    elements: int
    first: int
    last: int


@contextmanager
def recorded_loads(tensor: torch.Tensor) -> Iterator[list[list[TileLoad]]]:
    """For each launch of the interpreter inside, its loads of tiles [rows, columns] of the tensor, as they happen."""
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

    launches: list[list[TileLoad]] = []
    before = GridExecutor.__call__, InterpreterBuilder.create_masked_load

    def call(self: GridExecutor, *args: object, **kwargs: object) -> None:
        launches.append([])
        before[0](self, *args, **kwargs)

    def load(self: InterpreterBuilder, pointers: Any, mask: Any, *options: Any) -> Any:
        index = (pointers.data[mask.data].astype("int64") - tensor.data_ptr()) // tensor.element_size()
        if pointers.data.ndim == 2 and index.size and 0 <= index[0] < tensor.numel():
            launches[-1].append(TileLoad(self.grid_idx, index.size, int(index.min()), int(index.max())))
        return before[1](self, pointers, mask, *options)

    GridExecutor.__call__, InterpreterBuilder.create_masked_load = call, load
    try:
        yield launches
    finally:
        GridExecutor.__call__, InterpreterBuilder.create_masked_load = before

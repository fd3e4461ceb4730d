"""How a layer is partitioned into programs: tiles, splits and vector widths, given its shape and memory format.

Splits and tiles of cells are interleaved: split s takes steps s, s + splits, s + 2 * splits, ... The programs of a
sample run at once, so together they go through it from its beginning to its end, whatever the number of splits. The
backward goes from end to beginning: it meets first what the forward read last, which L2 may still hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .launch import ceil_div, fewest_splits, power_of_two, vector_width, wanted_programs

#: Elements of a tile: with 4 warps, 32 of each input per thread.
TILE = 4096

#: The most elements in a row of a tile.
MAX_ROW = 1024

#: A program sweeps at least this many tiles, so that its partial map is small compared with its input.
MIN_TILES = 4


@dataclass(frozen=True)
class Sweep:
    """One launch over a layer (B, C, H, W), reading `count` channels of each sample.

    NCHW: a sample is a run of rows of `period` elements; tiles are [block_r rows, block_p columns]. A program processes
    one tile's columns of every `splits`-th step of block_r rows.
    channels_last: tiles are [block_r cells, block_p channels]. A program processes every `splits`-th step of block_p
    channels of every `tiles`-th block of block_r cells.
    """

    batch: int
    channels: int
    count: int
    cells: int
    channels_last: bool
    vector: int
    vector_c: int
    vector_cells: int
    period: int
    block_r: int
    block_p: int
    steps: int
    splits: int
    tiles: int

    @property
    def programs(self) -> int:
        return self.batch * self.splits * self.tiles

    @property
    def partials(self) -> int:
        """Partial maps per sample that the sweep stores."""
        return self.splits if self.channels_last else self.splits * self.period // self.cells

    @property
    def exact(self) -> bool:
        """Whether the channels that take part end on a vector boundary."""
        return (self.count if self.channels_last else self.count * self.cells) % self.vector == 0

    def arguments(self) -> dict[str, int | bool]:
        """The kernel arguments that describe the sweep, except the batch size."""
        return {
            "channels_v": self.channels // self.vector_c,
            "count": self.count,
            "cells_v": self.cells // self.vector_cells,
            "period_v": self.period // self.vector,
            "steps": self.steps,
            "splits": self.splits,
            "tiles": self.tiles,
            "CHANNELS_LAST": self.channels_last,
            "VECTOR": self.vector,
            "VECTOR_C": self.vector_c,
            "VECTOR_CELLS": self.vector_cells,
            "EXACT": self.exact,
            "BLOCK_R": self.block_r,
            "BLOCK_P": self.block_p,
        }


#: The arguments of a sweep for whose values of 1 and multiples of 16 kernels are not specialised: no address alignment
#: depends on them, and the numbers of programs depend on the batch size.
NOT_SPECIALISED = ["steps", "splits", "tiles"]


def is_channels_last(layer: Tensor) -> bool:
    """Whether a layer that is contiguous in one of the two memory formats is channels_last."""
    return not layer.is_contiguous()


def row_period(cells: int, channels: int, vector: int) -> int:
    """Elements of a row of the flat run: whole channels, a multiple of `vector`, close to a power of two."""
    least = math.lcm(cells, vector)
    best, best_fill = least, 0.0
    for times in range(1, MAX_ROW // least + 1):
        length = least * times
        if length > least and length > channels * cells:
            break
        fill = length / power_of_two(length)
        if fill > best_fill + 0.02:
            best, best_fill = length, fill
    return best


def plan(layer: Tensor, *, count: int, swept: int, tile: int = TILE) -> Sweep:
    """Partitions the first `swept` channels of each sample into programs.

    Args: layer (B, C, H, W); count: n, the channels that take part; swept: n for a forward sweep, C for a
    backward sweep, which writes every gradient; tile: elements of a tile, halved for float64.
    """
    batch, channels, height, width = layer.shape
    cells = height * width
    tile = tile // 2 if layer.dtype == torch.float64 else tile
    vector_c, vector_cells = vector_width(layer.dtype, channels), vector_width(layer.dtype, cells)
    channels_last = is_channels_last(layer)
    # Rounded down: no more programs than are resident at once, so that there is no second wave.
    wanted = max(1, wanted_programs(layer) // max(1, batch))
    if channels_last:
        vector, period = vector_c, cells
        block_p = min(power_of_two(swept), MAX_ROW // 2)
        block_r = min(power_of_two(cells), tile // block_p)
        tiles = fewest_splits(ceil_div(cells, block_r), wanted)
        rows, step, least = swept, block_p, 1
    else:
        vector = vector_width(layer.dtype, channels * cells)
        period = row_period(cells, channels, vector)
        block_p = min(power_of_two(period), MAX_ROW)
        rows = ceil_div(swept * cells, period)
        block_r = min(power_of_two(rows), max(1, tile // block_p))
        tiles = ceil_div(period, block_p)
        step, least = block_r, MIN_TILES
    steps = ceil_div(rows, step)
    return Sweep(
        batch=batch,
        channels=channels,
        count=count,
        cells=cells,
        channels_last=channels_last,
        vector=vector,
        vector_c=vector_c,
        vector_cells=vector_cells,
        period=period,
        block_r=block_r,
        block_p=block_p,
        steps=steps,
        splits=fewest_splits(steps, min(max(1, wanted // tiles), max(1, steps // least))),
        tiles=tiles,
    )

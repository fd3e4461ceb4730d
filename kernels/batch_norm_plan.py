"""How batch normalisation partitions a layer into programs, given its shape and memory format."""

from __future__ import annotations

import math
from dataclasses import dataclass

import triton.language as tl
from torch import Tensor

from .launch import (
    OPTIONS,
    PROGRAMS_PER_PROCESSOR,
    accumulator,
    ceil_div,
    fewest_splits,
    power_of_two,
    vector_width,
    wanted_programs,
)

#: Bytes of a tile of one tensor with 4 warps: 32 per thread. By Little's law each multiprocessor of an H200 needs some
#: 29 KB in flight to keep its memory busy. Every program has two or three such tiles in flight.
TILE_BYTES = 4096
#: Replaces PROGRAMS_PER_PROCESSOR where three tensors are read and a thread keeps coefficients of several channels:
#: four programs do not fit in the register file, and three have as many bytes in flight.
PROGRAMS_OF_THREE = 3
#: The most channels in a tile when channels are innermost, and the fewest bytes to which a row of the tile is cut.
MAX_TILE_CHANNELS = 64
MIN_ROW_BYTES = 64
#: The most elements in a run of neighbouring planes.
MAX_RUN = 1024
#: A plane that allows vectors of at least this many bytes is read on its own, without its neighbours.
MIN_VECTOR_BYTES = 8
#: Another program helps only if each has at least this many tiles of TILE_BYTES.
MIN_TILES = 2
#: The most splits: every program of an elementwise kernel reads the partial sums of all splits for its channels.
MAX_SPLITS = 128


@dataclass(frozen=True)
class Parts:
    """How a layer (B, C, L) is partitioned into programs; batch_norm_tile.py describes the tiles."""

    channels: int
    count: int  # M = B * L
    length: int
    flat: bool
    rows: int
    row: int  # stride between rows, in elements
    vector: int  # divides `rows` if flat, else `row`
    plane: int
    channels_per_tile: int
    block_m: int
    splits: int
    warps: int

    @property
    def columns(self) -> int:
        return power_of_two(self.channels_per_tile * self.plane)

    @property
    def grid(self) -> tuple[int, int]:
        return ceil_div(self.channels, self.channels_per_tile), self.splits

    def arguments(self, input: Tensor) -> dict[str, object]:
        """The kernel arguments that describe the partition."""
        return {
            "channels": self.channels,
            "rows_v": self.rows // self.vector if self.flat else self.rows,
            "row_v": self.row if self.flat else self.row // self.vector,
            "VECTOR": self.vector,
            "LENGTH": self.length,
            "FLAT": self.flat,
            "CHANNELS": self.channels_per_tile,
            "PLANE": self.plane,
            "COLUMNS": self.columns,
            "BLOCK_M": self.block_m,
            # int32 if the sum of two row indices fits: the division by LENGTH is expensive in int64.
            "INDEX": tl.int32 if self.rows < 2**30 else tl.int64,
            "T": accumulator(input.dtype),
            **OPTIONS,
            "num_warps": self.warps,
        }

    def padded_sizes(self) -> dict[str, int]:
        """The padded sizes that kernels which sum over a tile's channels take as arguments."""
        return {"CHANNELS_PADDED": power_of_two(self.channels_per_tile), "PLANE_PADDED": power_of_two(self.plane)}


def run_vector(input: Tensor, length: int) -> int:
    """Elements of the widest vector that divides a run of neighbouring planes."""
    vector = vector_width(input.dtype, input.shape[1] * length)
    while math.lcm(length, vector) > MAX_RUN and vector > 1:
        vector //= 2
    return vector


def parts_of(input: Tensor, *, tensors: int, tiles: int = 1) -> Parts:
    """Partitions the layer.

    Args: tensors: the number of tensors of the layer's shape that the kernel reads; tiles: the size of a tile of each,
        as a multiple of TILE_BYTES.
    """
    channels = input.shape[1]
    count = input.numel() // channels
    length = count // input.shape[0]
    size = input.element_size()
    innermost = length == 1 or not input.is_contiguous()
    alone, vector = vector_width(input.dtype, length), run_vector(input, length)
    flat = not innermost and (alone * size >= MIN_VECTOR_BYTES or alone >= vector)
    wanted = wanted_programs(input)
    if tensors == 3 and not flat:
        wanted = wanted * PROGRAMS_OF_THREE // PROGRAMS_PER_PROCESSOR
    rows, row, plane, channels_per_tile = count, channels, 1, 1
    if innermost:
        vector = vector_width(input.dtype, channels)
        channels_per_tile = min(MAX_TILE_CHANNELS, power_of_two(channels))
        while _too_few(ceil_div(channels, channels_per_tile), wanted) and channels_per_tile * size > MIN_ROW_BYTES:
            channels_per_tile //= 2
    elif flat:
        vector = alone
    else:
        rows, row, plane = input.shape[0], channels * length, length
        channels_per_tile = math.lcm(length, vector) // length
    across = ceil_div(channels, channels_per_tile)
    more_warps = 2 if _too_few(across, wanted) else 1
    elements = TILE_BYTES * tiles * more_warps // size
    block_m = min(max(1, elements // power_of_two(channels_per_tile * plane)), power_of_two(rows))
    least = MIN_TILES * block_m // tiles
    # Rounded down: no more programs than are resident at once, so that there is no second wave.
    splits = min(MAX_SPLITS, max(1, rows // least), max(1, wanted // across))
    return Parts(
        channels=channels,
        count=count,
        length=length,
        flat=flat,
        rows=rows,
        row=row,
        vector=vector,
        plane=plane,
        channels_per_tile=channels_per_tile,
        block_m=block_m,
        splits=fewest_splits(ceil_div(rows, block_m), splits),
        warps=OPTIONS["num_warps"] * more_warps,
    )


def _too_few(across: int, wanted: int) -> bool:
    """Whether `across` tiles of channels give at most half of the wanted programs even with MAX_SPLITS splits each."""
    return 2 * across * MAX_SPLITS <= wanted

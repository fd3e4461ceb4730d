"""How batch normalisation cuts a layer into programs, from its shape and format."""

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
    power_of_two,
    vector_width,
    wanted_programs,
)

#: Bytes of a tile of one tensor with 4 warps, 32 of each thread. By Little's law each multiprocessor of an H200 has to
#: ask for some 29 KB at a time to keep its memory busy. Every program asks for two or three such tiles.
TILE_BYTES = 4096
#: Of PROGRAMS_PER_PROCESSOR, where three tensors are read and a thread keeps coefficients of several channels: four
#: programs have not the registers, and three ask for as many bytes.
PROGRAMS_OF_THREE = 3
#: Channels of a tile where they are innermost; and the bytes below which its rows are not cut.
WIDEST = 64
LEAST_ROW_BYTES = 64
#: Elements of a run of neighbouring planes.
LONGEST_RUN = 1024
#: Bytes of a vector from which on a plane is not read together with its neighbours.
WIDE_BYTES = 8
#: Times TILE_BYTES that a program should have before another one helps.
LEAST_TILES = 2
#: Every program of an elementwise kernel reads all splits' sums of its channels.
MOST_SPLITS = 128


@dataclass(frozen=True)
class Parts:
    """How a layer (B, C, L) is cut into programs; batch_norm_tile.py says what the tiles are."""

    channels: int
    count: int  # M = B * L
    length: int
    flat: bool
    rows: int
    row: int  # elements from a row to the next
    vector: int  # divides the rows where FLAT, else the row
    plane: int
    channels_per_tile: int
    block_m: int
    per_split: int
    splits: int
    warps: int

    @property
    def columns(self) -> int:
        return power_of_two(self.channels_per_tile * self.plane)

    @property
    def grid(self) -> tuple[int, int]:
        return ceil_div(self.channels, self.channels_per_tile), self.splits

    def arguments(self, input: Tensor) -> dict[str, object]:
        """The kernel arguments that describe it."""
        return {
            "channels": self.channels,
            "rows_v": self.rows // self.vector if self.flat else self.rows,
            "row_v": self.row if self.flat else self.row // self.vector,
            "per_split": self.per_split,
            "VECTOR": self.vector,
            "LENGTH": self.length,
            "FLAT": self.flat,
            "CHANNELS": self.channels_per_tile,
            "PLANE": self.plane,
            "COLUMNS": self.columns,
            "BLOCK_M": self.block_m,
            # 32 bits where the sums of two rows' numbers fit: the division by LENGTH is dear in 64.
            "INDEX": tl.int32 if self.rows < 2**30 else tl.int64,
            "T": accumulator(input.dtype),
            **OPTIONS,
            "num_warps": self.warps,
        }

    def rooms(self) -> dict[str, int]:
        """The arguments of kernels that sum over the channels of a tile."""
        return {"ROOM": power_of_two(self.channels_per_tile), "ROOM_PLANE": power_of_two(self.plane)}


def run_vector(input: Tensor, length: int) -> int:
    """Elements of the widest vector of which whole ones fill a run of neighbouring planes."""
    vector = vector_width(input.dtype, input.shape[1] * length)
    while math.lcm(length, vector) > LONGEST_RUN and vector > 1:
        vector //= 2
    return vector


def parts_of(input: Tensor, *, tensors: int, tiles: int = 1) -> Parts:
    """Cuts the layer.

    Args: tensors: of its shape, that the kernel reads; tiles: of TILE_BYTES, that it takes of each as one.
    """
    channels = input.shape[1]
    count = input.numel() // channels
    length = count // input.shape[0]
    size = input.element_size()
    innermost = length == 1 or not input.is_contiguous()
    alone, vector = vector_width(input.dtype, length), run_vector(input, length)
    flat = not innermost and (alone * size >= WIDE_BYTES or alone >= vector)
    wanted = wanted_programs(input)
    if tensors == 3 and not flat:
        wanted = wanted * PROGRAMS_OF_THREE // PROGRAMS_PER_PROCESSOR
    rows, row, plane, channels_per_tile = count, channels, 1, 1
    if innermost:
        vector = vector_width(input.dtype, channels)
        channels_per_tile = min(WIDEST, power_of_two(channels))
        while _too_few(ceil_div(channels, channels_per_tile), wanted) and channels_per_tile * size > LEAST_ROW_BYTES:
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
    least = LEAST_TILES * block_m // tiles
    # Rounded down: no more programs than are resident at once, and none left over for a second round.
    splits = min(MOST_SPLITS, max(1, rows // least), max(1, wanted // across))
    per_split = ceil_div(ceil_div(rows, splits), block_m) * block_m
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
        per_split=per_split,
        splits=ceil_div(rows, per_split),
        warps=OPTIONS["num_warps"] * more_warps,
    )


def _too_few(across: int, wanted: int) -> bool:
    """Whether the most splits of so many tiles of channels are half the programs that are wanted, or fewer."""
    return 2 * across * MOST_SPLITS <= wanted

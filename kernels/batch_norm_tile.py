# mypy: allow-untyped-defs
"""Triton: where a tile of batch normalisation lies in its layer, and sums over the channels that it holds.

A tile is [BLOCK_M rows, COLUMNS]; column j holds an element of the tile's channel j // PLANE, the same in every row:

    channels innermost           the layer is [B * L, C]     PLANE = 1, a tile is some of the channels wide
    small or odd planes, NCHW    the layer is [B, C * L]     PLANE = L, a tile is CHANNELS neighbouring planes wide,
                                                             which make one flat run of whole vectors
    other planes, NCHW (FLAT)    the layer is [C][B * L]     PLANE = 1, a tile is one channel wide

program_id(0) counts tiles of channels, program_id(1) the splits of the rows. What is the same in all rows is computed
once for a column, before the rows are read.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def columns_of(row, CHANNELS: tl.constexpr, PLANE: tl.constexpr, COLUMNS: tl.constexpr):
    """(place in a row, channel, whether there is one) of this program's columns, [COLUMNS] each."""
    column = tl.arange(0, COLUMNS)
    place = tl.program_id(0) * (CHANNELS * PLANE) + column
    # In terms of places, not of channels, so that the compiler sees whole vectors inside or outside.
    return place, place // PLANE, (column < CHANNELS * PLANE) & (place < row)


@triton.jit
def channels_of(channels, CHANNELS: tl.constexpr, ROOM: tl.constexpr):
    """(channel, whether there is one) of this program's tile, [ROOM] each."""
    index = tl.arange(0, ROOM)
    c = tl.program_id(0) * CHANNELS + index
    return c, (index < CHANNELS) & (c < channels)


@triton.jit
def rows_of(rows, per_split, INDEX: tl.constexpr):
    """The program's rows, from and to."""
    begin = tl.program_id(1).to(INDEX) * per_split
    return begin, tl.minimum(begin + per_split, rows)


@triton.jit
def tile_at(
    start,
    end,
    place,
    inside,
    row,
    channels,
    LENGTH: tl.constexpr,
    FLAT: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """(offsets, which of them are in the layer) of BLOCK_M rows from `start`."""
    m = (start + tl.arange(0, BLOCK_M))[:, None]
    column = place.to(tl.int64)[None, :]
    if FLAT:
        at = ((m // LENGTH).to(tl.int64) * channels + column) * LENGTH + m % LENGTH
    else:
        at = m.to(tl.int64) * row + column
    return at, (m < end) & inside[None, :]


@triton.jit
def sum_rows(tile, CHANNELS: tl.constexpr, PLANE: tl.constexpr, ROOM: tl.constexpr, ROOM_PLANE: tl.constexpr):
    """The sum [ROOM] of a tile for each of its channels; ROOM and ROOM_PLANE: powers of two >= CHANNELS, PLANE."""
    columns = tl.sum(tile, 0)
    if PLANE == 1:
        result = columns
    else:
        index = tl.arange(0, ROOM * ROOM_PLANE)
        element = index % ROOM_PLANE
        there = (element < PLANE) & (index // ROOM_PLANE < CHANNELS)
        planes = tl.gather(columns, tl.where(there, index // ROOM_PLANE * PLANE + element, 0), 0)
        result = tl.sum(tl.reshape(tl.where(there, planes, 0.0), [ROOM, ROOM_PLANE]), 1)
    return result


@triton.jit
def spread(values, PLANE: tl.constexpr, ROOM: tl.constexpr, COLUMNS: tl.constexpr):
    """A value [ROOM] for each channel of the tile as the row [1, COLUMNS] of its columns."""
    if PLANE == 1:
        row = values
    else:
        row = tl.gather(values, tl.minimum(tl.arange(0, COLUMNS) // PLANE, ROOM - 1), 0)
    return row[None, :]


@triton.jit
def per_column(ptr, c, inside, otherwise: tl.constexpr):
    """Row [1, COLUMNS] of a vector [C], or `otherwise` where there is none."""
    if ptr is None:
        row = tl.full(c.shape, otherwise, tl.float32)
    else:
        row = tl.load(ptr + c, mask=inside, other=0.0)
    return row[None, :]

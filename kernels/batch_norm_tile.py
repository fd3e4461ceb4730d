# mypy: allow-untyped-defs
"""Triton: where a tile of batch normalisation lies in its layer, and the sums over its channels.

A tile is [BLOCK_M rows, COLUMNS]; in every row, column j holds an element of the tile's channel j // PLANE:

    channels innermost           the layer is [B * L, C]     PLANE = 1, a tile spans some of the channels
    small or odd planes, NCHW    the layer is [B, C * L]     PLANE = L, a tile spans CHANNELS neighbouring planes,
                                                             which form one flat run of whole vectors
    other planes, NCHW (FLAT)    the layer is [C][B * L]     PLANE = 1, a tile spans one channel

program_id(0) indexes the tiles of channels, program_id(1) the splits of the rows. Splits are interleaved: split s takes
the steps of BLOCK_M rows s, s + splits, s + 2 * splits, ..., so that programs that run at once go through the layer
together, whatever their number. A kernel that reads the layer a second time is REVERSED: it takes tiles of channels and
steps from last to first, and meets first what the kernel before it read last, which L2 may still hold.

Whatever is the same in all rows is computed once per column, before the rows are read.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def columns_of(row, CHANNELS: tl.constexpr, PLANE: tl.constexpr, COLUMNS: tl.constexpr, REVERSED: tl.constexpr = False):
    """(position in a row, channel, mask) of this program's columns, [COLUMNS] each."""
    column = tl.arange(0, COLUMNS)
    tile = tl.num_programs(0) - 1 - tl.program_id(0) if REVERSED else tl.program_id(0)
    place = tile * (CHANNELS * PLANE) + column
    # The mask is in terms of positions, not channels, so that the compiler sees vectors as entirely inside or outside.
    return place, place // PLANE, (column < CHANNELS * PLANE) & (place < row)


@triton.jit
def channels_of(channels, CHANNELS: tl.constexpr, CHANNELS_PADDED: tl.constexpr):
    """(channel, mask) of this program's tile, [CHANNELS_PADDED] each."""
    index = tl.arange(0, CHANNELS_PADDED)
    c = tl.program_id(0) * CHANNELS + index
    return c, (index < CHANNELS) & (c < channels)


@triton.jit
def rows_of(BLOCK_M: tl.constexpr, INDEX: tl.constexpr):
    """(first, stride): the program takes BLOCK_M rows from each of range(first, rows, stride); see `tile_at`."""
    return tl.program_id(1).to(INDEX) * BLOCK_M, tl.num_programs(1) * BLOCK_M


@triton.jit
def tile_at(
    start,
    rows,
    place,
    inside,
    row,
    channels,
    LENGTH: tl.constexpr,
    FLAT: tl.constexpr,
    PLANE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    REVERSED: tl.constexpr = False,
):
    """(offsets, mask) of BLOCK_M rows, [BLOCK_M, COLUMNS] each: from `start`, or if REVERSED as far from the last step.

    Nothing is inside if `start` >= `rows`.
    """
    end = rows
    if REVERSED:
        exists = start < rows
        start = (rows - 1) // BLOCK_M * BLOCK_M - start
        end = tl.where(exists, rows, start)
    m = (start + tl.arange(0, BLOCK_M))[:, None]
    column = place.to(tl.int64)[None, :]
    if FLAT:
        offsets = ((m // LENGTH).to(tl.int64) * channels + column) * LENGTH + m % LENGTH
    elif PLANE == 1:
        # In this order ptxas of Triton 3.6 and 3.8 spills nothing; in the other it does, or takes more registers.
        offsets = start.to(tl.int64) * row + column + tl.arange(0, BLOCK_M).to(tl.int64)[:, None] * row
    else:
        offsets = m.to(tl.int64) * row + column
    return offsets, (m < end) & inside[None, :]


@triton.jit
def sum_rows(
    tile, CHANNELS: tl.constexpr, PLANE: tl.constexpr, CHANNELS_PADDED: tl.constexpr, PLANE_PADDED: tl.constexpr
):
    """The per-channel sums [CHANNELS_PADDED] of a tile; the padded sizes are powers of two >= CHANNELS and PLANE."""
    columns = tl.sum(tile, 0)
    if PLANE == 1:
        result = columns
    else:
        index = tl.arange(0, CHANNELS_PADDED * PLANE_PADDED)
        element = index % PLANE_PADDED
        valid = (element < PLANE) & (index // PLANE_PADDED < CHANNELS)
        planes = tl.gather(columns, tl.where(valid, index // PLANE_PADDED * PLANE + element, 0), 0)
        result = tl.sum(tl.reshape(tl.where(valid, planes, 0.0), [CHANNELS_PADDED, PLANE_PADDED]), 1)
    return result


@triton.jit
def spread(values, PLANE: tl.constexpr, CHANNELS_PADDED: tl.constexpr, COLUMNS: tl.constexpr):
    """Broadcasts per-channel values [CHANNELS_PADDED] to the tile's columns: a row [1, COLUMNS]."""
    if PLANE == 1:
        row = values
    else:
        row = tl.gather(values, tl.minimum(tl.arange(0, COLUMNS) // PLANE, CHANNELS_PADDED - 1), 0)
    return row[None, :]


@triton.jit
def per_column(ptr, c, inside, otherwise: tl.constexpr):
    """A vector [C] at channels `c`, as a row [1, COLUMNS]; filled with `otherwise` if there is no vector."""
    if ptr is None:
        row = tl.full(c.shape, otherwise, tl.float32)
    else:
        row = tl.load(ptr + c, mask=inside, other=0.0)
    return row[None, :]

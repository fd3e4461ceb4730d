# mypy: allow-untyped-defs
"""Triton: a batch's mean and variance for each channel, from one read of the layer."""

from __future__ import annotations

import triton
import triton.language as tl

from .batch_norm_tile import channels_of, columns_of, rows_of, spread, sum_rows, tile_at
from .gaussians import exact


@triton.jit
def statistics_kernel(
    input_ptr,  # [B, C, L]
    partial_ptr,  # [splits, 3, C]: mean, sum of squares around it, elements
    channels,
    rows_v,
    row_v,
    per_split,
    VECTOR: tl.constexpr,
    LENGTH: tl.constexpr,
    FLAT: tl.constexpr,
    CHANNELS: tl.constexpr,
    PLANE: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    INDEX: tl.constexpr,
    ROOM: tl.constexpr,
    ROOM_PLANE: tl.constexpr,
    T: tl.constexpr,
):
    """Each slot of the tile takes the deviations of what it sees from the first that it saw, its pivot.

    Cancellation: a pivot is one of the slot's own n values, so that the sum of squares around it is at most n times
    the one around their mean, whatever the values are: the relative error is a few n of the type's.
    """
    rows = rows_v * VECTOR if FLAT else rows_v
    row = row_v if FLAT else row_v * VECTOR
    place, _, inside = columns_of(row, CHANNELS, PLANE, COLUMNS)
    begin, end = rows_of(rows, per_split, INDEX)
    at, mask = tile_at(begin, end, place, inside, row, channels, LENGTH, FLAT, BLOCK_M)
    first = tl.load(input_ptr + at, mask=mask, other=0.0)
    pivot = first.to(T)
    total = tl.zeros([BLOCK_M, COLUMNS], T)
    squares = tl.zeros([BLOCK_M, COLUMNS], T)
    # Two tiles at a time, and the next two are asked for before the last two are used. What is not in the layer
    # deviates by 0.
    at, mask0 = tile_at(begin + BLOCK_M, end, place, inside, row, channels, LENGTH, FLAT, BLOCK_M)
    x0 = tl.load(input_ptr + at, mask=mask0, other=first)
    at, mask1 = tile_at(begin + 2 * BLOCK_M, end, place, inside, row, channels, LENGTH, FLAT, BLOCK_M)
    x1 = tl.load(input_ptr + at, mask=mask1, other=first)
    for start in range(begin + BLOCK_M, end, 2 * BLOCK_M):
        at, mask0 = tile_at(start + 2 * BLOCK_M, end, place, inside, row, channels, LENGTH, FLAT, BLOCK_M)
        following0 = tl.load(input_ptr + at, mask=mask0, other=first)
        at, mask1 = tile_at(start + 3 * BLOCK_M, end, place, inside, row, channels, LENGTH, FLAT, BLOCK_M)
        following1 = tl.load(input_ptr + at, mask=mask1, other=first)
        deviation0 = x0.to(T) - pivot
        deviation1 = x1.to(T) - pivot
        total += deviation0 + deviation1
        squares += deviation0 * deviation0 + deviation1 * deviation1
        x0 = following0
        x1 = following1

    # Chan et al.: from slots to channels.
    m = begin + tl.arange(0, BLOCK_M)
    seen = (tl.maximum(end - m + (BLOCK_M - 1), 0) // BLOCK_M).to(T)[:, None]
    seen = tl.where(mask, seen, 0.0)
    above = total / tl.maximum(seen, 1.0)
    size = tl.maximum((end - begin).to(T) * PLANE, 1.0)
    mean = sum_rows(seen * pivot + total, CHANNELS, PLANE, ROOM, ROOM_PLANE) / size
    rest = tl.where(mask, pivot - spread(mean, PLANE, ROOM, COLUMNS) + above, 0.0)
    around = squares - total * above + seen * rest * rest
    # The rounding of the mean, which the deviations from it show.
    error = sum_rows(seen * rest, CHANNELS, PLANE, ROOM, ROOM_PLANE)
    c, there = channels_of(channels, CHANNELS, ROOM)
    part = partial_ptr + tl.program_id(1).to(tl.int64) * 3 * channels + c
    tl.store(part, mean + error / size, mask=there)
    tl.store(part + channels, sum_rows(around, CHANNELS, PLANE, ROOM, ROOM_PLANE) - error * error / size, mask=there)
    tl.store(part + 2 * channels, tl.zeros([ROOM], T) + size, mask=there)


@triton.jit
def final_statistics_kernel(
    statistics_ptr,  # [2, C]
    partial_ptr,  # [splits, 3, C]
    running_mean_ptr,  # [C] or None
    running_var_ptr,  # [C] or None
    channels,
    count,  # M
    splits,
    momentum,
    momentum_low,
    eps,
    eps_low,
    TRAINING: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,  # power of two >= splits
    T: tl.constexpr,
):
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < channels
    exact_momentum = exact(momentum, momentum_low, tl.float64)
    if TRAINING:
        # All parts are asked for at once: one after the other, each would take a latency.
        split = tl.arange(0, BLOCK_S)
        part = partial_ptr + split.to(tl.int64)[:, None] * 3 * channels + c[None, :]
        there = (split < splits)[:, None] & inside[None, :]
        means = tl.load(part, mask=there, other=0.0).to(tl.float64)
        around = tl.load(part + channels, mask=there, other=0.0).to(tl.float64)
        sizes = tl.load(part + 2 * channels, mask=there, other=0.0).to(tl.float64)
        mean = tl.sum(sizes * means, 0) / count
        apart = tl.where(there, means - mean[None, :], 0.0)
        squares = tl.sum(around + sizes * apart * apart, 0)
        variance = squares / count
        # Several threads may hold a channel: all have read what is there before any writes.
        if running_mean_ptr is not None:
            old = tl.load(running_mean_ptr + c, mask=inside, other=0.0)
            tl.debug_barrier()
            tl.store(running_mean_ptr + c, (old + exact_momentum * (mean - old)).to(T), mask=inside)
        if running_var_ptr is not None:
            old = tl.load(running_var_ptr + c, mask=inside, other=0.0)
            tl.debug_barrier()
            unbiased = squares / (count - 1)
            tl.store(running_var_ptr + c, (old + exact_momentum * (unbiased - old)).to(T), mask=inside)
    else:
        mean = tl.load(running_mean_ptr + c, mask=inside, other=0.0).to(tl.float64)
        variance = tl.load(running_var_ptr + c, mask=inside, other=0.0).to(tl.float64)
    tl.store(statistics_ptr + c, mean.to(T), mask=inside)
    tl.store(
        statistics_ptr + channels + c, (1.0 / tl.sqrt(variance + exact(eps, eps_low, tl.float64))).to(T), mask=inside
    )

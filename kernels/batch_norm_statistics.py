# mypy: allow-untyped-defs
"""Triton: the per-channel mean and variance of a batch, from one read of the layer."""

from __future__ import annotations

import triton
import triton.language as tl

from .batch_norm_tile import channels_of, columns_of, rows_of, spread, sum_rows, tile_at
from .gaussians import exact


@triton.jit
def statistics_kernel(
    input_ptr,  # [B, C, L]
    partial_ptr,  # [splits, 3, C]: mean, sum of squared deviations from it, count of elements
    channels,
    rows_v,
    row_v,
    VECTOR: tl.constexpr,
    LENGTH: tl.constexpr,
    FLAT: tl.constexpr,
    CHANNELS: tl.constexpr,
    PLANE: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    INDEX: tl.constexpr,
    CHANNELS_PADDED: tl.constexpr,
    PLANE_PADDED: tl.constexpr,
    T: tl.constexpr,
):
    """Each slot of the tile accumulates the deviations of its values from the first of them, its pivot.

    Cancellation: the pivot is one of the slot's own n values, so the sum of squares about it is at most n times the sum
    of squares about their mean, for any values: the relative error is a few n times the type's rounding error.
    """
    rows = rows_v * VECTOR if FLAT else rows_v
    row = row_v if FLAT else row_v * VECTOR
    place, _, inside = columns_of(row, CHANNELS, PLANE, COLUMNS)
    begin, stride = rows_of(BLOCK_M, INDEX)
    offsets, mask = tile_at(begin, rows, place, inside, row, channels, LENGTH, FLAT, PLANE, BLOCK_M)
    first = tl.load(input_ptr + offsets, mask=mask, other=0.0)
    pivot = first.to(T)
    total = tl.zeros([BLOCK_M, COLUMNS], T)
    squares = tl.zeros([BLOCK_M, COLUMNS], T)
    # Two tiles per iteration; the next two are prefetched before the current two are used. A masked element deviates
    # by 0.
    offsets, mask0 = tile_at(begin + stride, rows, place, inside, row, channels, LENGTH, FLAT, PLANE, BLOCK_M)
    x0 = tl.load(input_ptr + offsets, mask=mask0, other=first)
    offsets, mask1 = tile_at(begin + 2 * stride, rows, place, inside, row, channels, LENGTH, FLAT, PLANE, BLOCK_M)
    x1 = tl.load(input_ptr + offsets, mask=mask1, other=first)
    for start in range(begin + stride, rows, 2 * stride):
        offsets, mask0 = tile_at(start + 2 * stride, rows, place, inside, row, channels, LENGTH, FLAT, PLANE, BLOCK_M)
        prefetched0 = tl.load(input_ptr + offsets, mask=mask0, other=first)
        offsets, mask1 = tile_at(start + 3 * stride, rows, place, inside, row, channels, LENGTH, FLAT, PLANE, BLOCK_M)
        prefetched1 = tl.load(input_ptr + offsets, mask=mask1, other=first)
        deviation0 = x0.to(T) - pivot
        deviation1 = x1.to(T) - pivot
        total += deviation0 + deviation1
        squares += deviation0 * deviation0 + deviation1 * deviation1
        x0 = prefetched0
        x1 = prefetched1

    # Chan et al.: combine the slots into channels.
    # A slot has a row of each of the program's steps, save that the layer's last step may be incomplete.
    whole = (rows - 1 - begin) // stride
    last = rows - begin - whole * stride
    counts = (whole + (tl.arange(0, BLOCK_M) < last)).to(T)[:, None]
    counts = tl.where(mask, counts, 0.0)
    mean_deviation = total / tl.maximum(counts, 1.0)
    count = (whole * BLOCK_M + tl.minimum(last, BLOCK_M)).to(T) * PLANE
    mean = sum_rows(counts * pivot + total, CHANNELS, PLANE, CHANNELS_PADDED, PLANE_PADDED) / count
    delta = tl.where(mask, pivot - spread(mean, PLANE, CHANNELS_PADDED, COLUMNS) + mean_deviation, 0.0)
    m2 = squares - total * mean_deviation + counts * delta * delta
    # The rounding error of the mean: the sum of the deviations from it.
    error = sum_rows(counts * delta, CHANNELS, PLANE, CHANNELS_PADDED, PLANE_PADDED)
    c, valid = channels_of(channels, CHANNELS, CHANNELS_PADDED)
    partial = partial_ptr + tl.program_id(1).to(tl.int64) * 3 * channels + c
    tl.store(partial, mean + error / count, mask=valid)
    tl.store(
        partial + channels,
        sum_rows(m2, CHANNELS, PLANE, CHANNELS_PADDED, PLANE_PADDED) - error * error / count,
        mask=valid,
    )
    tl.store(partial + 2 * channels, tl.zeros([CHANNELS_PADDED], T) + count, mask=valid)


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
        # All partial sums are loaded at once: in sequence, each load would cost a full memory latency.
        split = tl.arange(0, BLOCK_S)
        partial = partial_ptr + split.to(tl.int64)[:, None] * 3 * channels + c[None, :]
        mask = (split < splits)[:, None] & inside[None, :]
        means = tl.load(partial, mask=mask, other=0.0).to(tl.float64)
        m2 = tl.load(partial + channels, mask=mask, other=0.0).to(tl.float64)
        counts = tl.load(partial + 2 * channels, mask=mask, other=0.0).to(tl.float64)
        mean = tl.sum(counts * means, 0) / count
        delta = tl.where(mask, means - mean[None, :], 0.0)
        squares = tl.sum(m2 + counts * delta * delta, 0)
        variance = squares / count
        # Several threads may hold the same channel: all must have read the old value before any writes.
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

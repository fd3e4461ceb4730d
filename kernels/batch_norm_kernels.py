# mypy: allow-untyped-defs
"""Triton: batch normalisation's forward and its derivatives. The formulas are those of csrc/batch_norm_problem.h.

xc = x - mean, z = xc / sqrt(var + eps), G is the gradient behind the ReLU's mask, v the gradient of dx. The tiles are
those of batch_norm_tile.py. The next tile is asked for before the last one is used, and handed over from one iteration
to the next: ptxas would ask for a tile that is used in the same iteration piece by piece, and wait for each.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .batch_norm_tile import channels_of, columns_of, per_column, rows_of, sum_rows, tile_at


@triton.jit
def forward_kernel(
    output_ptr,  # [B, C, L]
    input_ptr,  # [B, C, L]
    weight_ptr,  # [C] or None
    bias_ptr,  # [C] or None
    statistics_ptr,  # [2, C]
    channels,
    rows_v,
    row_v,
    per_split,
    RELU: tl.constexpr,
    VECTOR: tl.constexpr,
    LENGTH: tl.constexpr,
    FLAT: tl.constexpr,
    CHANNELS: tl.constexpr,
    PLANE: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    INDEX: tl.constexpr,
    T: tl.constexpr,
):
    rows = rows_v * VECTOR if FLAT else rows_v
    row = row_v if FLAT else row_v * VECTOR
    place, c, inside = columns_of(row, CHANNELS, PLANE, COLUMNS)
    mean = per_column(statistics_ptr, c, inside, 0)
    scale = per_column(weight_ptr, c, inside, 1) * per_column(statistics_ptr + channels, c, inside, 0)
    bias = per_column(bias_ptr, c, inside, 0)
    begin, end = rows_of(rows, per_split, INDEX)
    at, mask = tile_at(begin, end, place, inside, row, channels, LENGTH, FLAT, BLOCK_M)
    x = tl.load(input_ptr + at, mask=mask, other=0.0)
    for start in range(begin, end, BLOCK_M):
        at, mask = tile_at(start + BLOCK_M, end, place, inside, row, channels, LENGTH, FLAT, BLOCK_M)
        following = tl.load(input_ptr + at, mask=mask, other=0.0)
        y = scale * (x.to(T) - mean) + bias
        if RELU:
            y = tl.where(y <= 0, 0.0, y)
        at, mask = tile_at(start, end, place, inside, row, channels, LENGTH, FLAT, BLOCK_M)
        tl.store(output_ptr + at, y.to(output_ptr.dtype.element_ty), mask=mask)
        x = following


@triton.jit
def _load(input_ptr, grad_ptr, grad_grad_ptr, at, mask):
    """(input, grad, grad_grad) as they are stored, 0 where there is no element; without a grad_grad, grad again."""
    x = tl.load(input_ptr + at, mask=mask, other=0.0)
    grad = tl.load(grad_ptr + at, mask=mask, other=0.0)
    return x, grad, grad if grad_grad_ptr is None else tl.load(grad_grad_ptr + at, mask=mask, other=0.0)


@triton.jit
def _elements(x, grad, grad_grad, mean, scale, bias, HAS_V: tl.constexpr, RELU: tl.constexpr, T: tl.constexpr):
    """(xc, G, v, where the ReLU passes). G and v are 0 where there is no element, and xc is finite."""
    xc = x.to(T) - mean
    grad = grad.to(T)
    passes = grad == grad
    if RELU:
        passes = (scale * xc + bias <= 0) == 0
        grad = tl.where(passes, grad, 0.0)
    return xc, grad, grad_grad.to(T) if HAS_V else grad * 0, passes


@triton.jit
def sums_kernel(
    partial_ptr,  # [splits, 3, C]: sum G, sum G xc; SECOND: sum v, sum v xc, sum v G
    input_ptr,
    grad_ptr,
    grad_grad_ptr,  # or None
    weight_ptr,
    bias_ptr,
    statistics_ptr,
    channels,
    rows_v,
    row_v,
    per_split,
    SECOND: tl.constexpr,
    RELU: tl.constexpr,
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
    rows = rows_v * VECTOR if FLAT else rows_v
    row = row_v if FLAT else row_v * VECTOR
    place, c, inside = columns_of(row, CHANNELS, PLANE, COLUMNS)
    mean = per_column(statistics_ptr, c, inside, 0)
    scale = per_column(weight_ptr, c, inside, 1) * per_column(statistics_ptr + channels, c, inside, 0)
    bias = per_column(bias_ptr, c, inside, 0)
    begin, end = rows_of(rows, per_split, INDEX)
    sum0 = tl.zeros([BLOCK_M, COLUMNS], T)
    sum1 = tl.zeros([BLOCK_M, COLUMNS], T)
    sum2 = tl.zeros([BLOCK_M, COLUMNS], T)
    at, mask = tile_at(begin, end, place, inside, row, channels, LENGTH, FLAT, BLOCK_M)
    loaded = _load(input_ptr, grad_ptr, grad_grad_ptr, at, mask)
    for start in range(begin, end, BLOCK_M):
        at, mask = tile_at(start + BLOCK_M, end, place, inside, row, channels, LENGTH, FLAT, BLOCK_M)
        following = _load(input_ptr, grad_ptr, grad_grad_ptr, at, mask)
        xc, grad, v, _ = _elements(*loaded, mean, scale, bias, grad_grad_ptr is not None, RELU, T)
        factor = v if SECOND else grad
        sum0 += factor
        sum1 += factor * xc
        if SECOND:
            sum2 += v * grad
        loaded = following
    c, there = channels_of(channels, CHANNELS, ROOM)
    part = partial_ptr + tl.program_id(1).to(tl.int64) * 3 * channels + c
    tl.store(part, sum_rows(sum0, CHANNELS, PLANE, ROOM, ROOM_PLANE), mask=there)
    tl.store(part + channels, sum_rows(sum1, CHANNELS, PLANE, ROOM, ROOM_PLANE), mask=there)
    if SECOND:
        tl.store(part + 2 * channels, sum_rows(sum2, CHANNELS, PLANE, ROOM, ROOM_PLANE), mask=there)


@triton.jit
def _sum_splits(part, step, splits, inside, BLOCK_S: tl.constexpr, COLUMNS: tl.constexpr, T: tl.constexpr):
    """Row [1, COLUMNS]: the sum over splits of what lies at `part` [COLUMNS] + split * step, in a fixed order."""
    total = tl.zeros([BLOCK_S, COLUMNS], T)
    for first in range(0, splits, BLOCK_S):
        split = first + tl.arange(0, BLOCK_S)
        there = (split < splits)[:, None] & inside[None, :]
        total += tl.load(part[None, :] + split.to(tl.int64)[:, None] * step, mask=there, other=0.0)
    return tl.sum(total, 0)[None, :]


@triton.jit
def derivative_kernel(
    output_ptr,  # [B, C, L] dx; SECOND: d_grad; or None
    second_ptr,  # [B, C, L] d_input, or None
    per_channel_ptr,  # [2, C] sums; SECOND: [C] d_weight; or None
    partial_ptr,  # [splits, 3, C]
    sums_ptr,  # [2, C] of the backward, or None
    grad_sums_ptr,  # [2, C], or None
    input_ptr,
    grad_ptr,
    grad_grad_ptr,
    weight_ptr,
    bias_ptr,
    statistics_ptr,
    channels,
    rows_v,
    row_v,
    per_split,
    count,  # M
    splits,  # of partial; 0 if nothing needs the sums
    TRAINING: tl.constexpr,
    SECOND: tl.constexpr,
    RELU: tl.constexpr,
    VECTOR: tl.constexpr,
    LENGTH: tl.constexpr,
    FLAT: tl.constexpr,
    CHANNELS: tl.constexpr,
    PLANE: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_S: tl.constexpr,  # splits at once
    T: tl.constexpr,
):
    rows = rows_v * VECTOR if FLAT else rows_v
    row = row_v if FLAT else row_v * VECTOR
    place, c, inside = columns_of(row, CHANNELS, PLANE, COLUMNS)
    mean = per_column(statistics_ptr, c, inside, 0)
    r = per_column(statistics_ptr + channels, c, inside, 0)
    scale = per_column(weight_ptr, c, inside, 1) * r
    bias = per_column(bias_ptr, c, inside, 0)

    part = partial_ptr + c
    step = tl.cast(channels, tl.int64) * 3
    sum0 = _sum_splits(part, step, splits, inside, BLOCK_S, COLUMNS, T)
    sum1 = _sum_splits(part + channels, step, splits, inside, BLOCK_S, COLUMNS, T) * r
    inverse = 1.0 / count.to(T) if TRAINING else 0.0
    # One of a channel's columns, and one of its programs, writes what there is one of.
    writes = (inside & (place % PLANE + tl.program_id(1) == 0))[None, :]
    # Both derivatives are linear in xc, G and v: the coefficients are made here, once for all rows.
    if SECOND:
        vg = _sum_splits(part + 2 * channels, step, splits, inside, BLOCK_S, COLUMNS, T)
        s0 = per_column(sums_ptr, c, inside, 0)
        s1 = s0 * 0 if sums_ptr is None else per_column(sums_ptr + channels, c, inside, 0)
        u0 = per_column(grad_sums_ptr, c, inside, 0)
        u1 = u0 * 0 if grad_sums_ptr is None else per_column(grad_sums_ptr + channels, c, inside, 0)
        # <v, dx> = r * weight * inner, and its derivative with respect to z = xc * r is e = p G + q v.
        inner = vg - (s0 * sum0 + s1 * sum1) * inverse
        p = u1 - scale * sum1 * inverse
        q = -scale * s1 * inverse
        mean_e = (p * s0 + q * sum0) * inverse
        mean_ez = (p * s1 + q * sum1) * inverse
        tl.store(per_channel_ptr + c[None, :], r * inner, mask=writes)
        slope = r * p  # of d_grad in xc, and of d_input in G
        offset = u0 - scale * sum0 * inverse
        second_v = r * q
        second_xc = r * r * (mean_ez + scale * inner * inverse)
        second_offset = r * mean_e
    else:
        if per_channel_ptr is not None:
            tl.store(per_channel_ptr + c[None, :], sum0, mask=writes)
            tl.store(per_channel_ptr + channels + c[None, :], sum1, mask=writes)
        slope = -scale * r * sum1 * inverse
        offset = -scale * sum0 * inverse
    if output_ptr is not None:
        begin, end = rows_of(rows, per_split, INDEX)
        at, mask = tile_at(begin, end, place, inside, row, channels, LENGTH, FLAT, BLOCK_M)
        loaded = _load(input_ptr, grad_ptr, grad_grad_ptr, at, mask)
        for start in range(begin, end, BLOCK_M):
            at, mask = tile_at(start + BLOCK_M, end, place, inside, row, channels, LENGTH, FLAT, BLOCK_M)
            following = _load(input_ptr, grad_ptr, grad_grad_ptr, at, mask)
            xc, grad, v, passes = _elements(*loaded, mean, scale, bias, grad_grad_ptr is not None, RELU, T)
            at, mask = tile_at(start, end, place, inside, row, channels, LENGTH, FLAT, BLOCK_M)
            if SECOND:
                first = scale * v + (slope * xc + offset)
                if RELU:
                    first = tl.where(passes, first, 0.0)
                if second_ptr is not None:
                    second = slope * grad + second_v * v - (second_xc * xc + second_offset)
                    tl.store(second_ptr + at, second.to(second_ptr.dtype.element_ty), mask=mask)
            else:
                first = scale * grad + (slope * xc + offset)
            tl.store(output_ptr + at, first.to(output_ptr.dtype.element_ty), mask=mask)
            loaded = following

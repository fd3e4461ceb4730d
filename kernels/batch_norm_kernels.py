# mypy: allow-untyped-defs
"""Triton: batch normalisation's forward and its derivatives. The formulas are those of csrc/batch_norm_problem.h.

xc = x - mean, z = xc / sqrt(var + eps), G is the gradient masked by the ReLU, v the gradient of dx. The tiles are those
of batch_norm_tile.py. Each iteration prefetches the next tile before it uses the current one, and hands it to the next
iteration: if a tile were used in the iteration that loads it, ptxas would load it piecemeal and wait for each piece.
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
    place, c, inside = columns_of(row, CHANNELS, PLANE, COLUMNS, True)
    mean = per_column(statistics_ptr, c, inside, 0)
    scale = per_column(weight_ptr, c, inside, 1) * per_column(statistics_ptr + channels, c, inside, 0)
    bias = per_column(bias_ptr, c, inside, 0)
    begin, stride = rows_of(BLOCK_M, INDEX)
    offsets, mask = tile_at(begin, rows, place, inside, row, channels, LENGTH, FLAT, PLANE, BLOCK_M, True)
    x = tl.load(input_ptr + offsets, mask=mask, other=0.0)
    for start in range(begin, rows, stride):
        offsets, mask = tile_at(start + stride, rows, place, inside, row, channels, LENGTH, FLAT, PLANE, BLOCK_M, True)
        prefetched = tl.load(input_ptr + offsets, mask=mask, other=0.0)
        y = scale * (x.to(T) - mean) + bias
        if RELU:
            y = tl.where(y <= 0, 0.0, y)
        offsets, mask = tile_at(start, rows, place, inside, row, channels, LENGTH, FLAT, PLANE, BLOCK_M, True)
        tl.store(output_ptr + offsets, y.to(output_ptr.dtype.element_ty), mask=mask)
        x = prefetched


@triton.jit
def _load(input_ptr, grad_ptr, grad_grad_ptr, offsets, mask):
    """(input, grad, grad_grad) as stored, 0 where masked; without a grad_grad, grad is returned in its place."""
    x = tl.load(input_ptr + offsets, mask=mask, other=0.0)
    grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0)
    return x, grad, grad if grad_grad_ptr is None else tl.load(grad_grad_ptr + offsets, mask=mask, other=0.0)


@triton.jit
def _elements(x, grad, grad_grad, mean, scale, bias, HAS_V: tl.constexpr, RELU: tl.constexpr, T: tl.constexpr):
    """(xc, G, v, where the ReLU passes). At masked elements G and v are 0, and xc is finite."""
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
    CHANNELS_PADDED: tl.constexpr,
    PLANE_PADDED: tl.constexpr,
    T: tl.constexpr,
):
    rows = rows_v * VECTOR if FLAT else rows_v
    row = row_v if FLAT else row_v * VECTOR
    place, c, inside = columns_of(row, CHANNELS, PLANE, COLUMNS)
    mean = per_column(statistics_ptr, c, inside, 0)
    scale = per_column(weight_ptr, c, inside, 1) * per_column(statistics_ptr + channels, c, inside, 0)
    bias = per_column(bias_ptr, c, inside, 0)
    begin, stride = rows_of(BLOCK_M, INDEX)
    sum0 = tl.zeros([BLOCK_M, COLUMNS], T)
    sum1 = tl.zeros([BLOCK_M, COLUMNS], T)
    sum2 = tl.zeros([BLOCK_M, COLUMNS], T)
    offsets, mask = tile_at(begin, rows, place, inside, row, channels, LENGTH, FLAT, PLANE, BLOCK_M)
    current = _load(input_ptr, grad_ptr, grad_grad_ptr, offsets, mask)
    for start in range(begin, rows, stride):
        offsets, mask = tile_at(start + stride, rows, place, inside, row, channels, LENGTH, FLAT, PLANE, BLOCK_M)
        prefetched = _load(input_ptr, grad_ptr, grad_grad_ptr, offsets, mask)
        xc, grad, v, _ = _elements(*current, mean, scale, bias, grad_grad_ptr is not None, RELU, T)
        factor = v if SECOND else grad
        sum0 += factor
        sum1 += factor * xc
        if SECOND:
            sum2 += v * grad
        current = prefetched
    c, valid = channels_of(channels, CHANNELS, CHANNELS_PADDED)
    partial = partial_ptr + tl.program_id(1).to(tl.int64) * 3 * channels + c
    tl.store(partial, sum_rows(sum0, CHANNELS, PLANE, CHANNELS_PADDED, PLANE_PADDED), mask=valid)
    tl.store(partial + channels, sum_rows(sum1, CHANNELS, PLANE, CHANNELS_PADDED, PLANE_PADDED), mask=valid)
    if SECOND:
        tl.store(partial + 2 * channels, sum_rows(sum2, CHANNELS, PLANE, CHANNELS_PADDED, PLANE_PADDED), mask=valid)


@triton.jit
def _sum_splits(partial, step, splits, inside, BLOCK_S: tl.constexpr, COLUMNS: tl.constexpr, T: tl.constexpr):
    """Row [1, COLUMNS]: the sum over splits of the values at `partial` [COLUMNS] + split * step, in a fixed order."""
    total = tl.zeros([BLOCK_S, COLUMNS], T)
    for first in range(0, splits, BLOCK_S):
        split = first + tl.arange(0, BLOCK_S)
        mask = (split < splits)[:, None] & inside[None, :]
        total += tl.load(partial[None, :] + split.to(tl.int64)[:, None] * step, mask=mask, other=0.0)
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
    count,  # M
    splits,  # of the partial sums; 0 if none are needed
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
    BLOCK_S: tl.constexpr,  # splits per tile
    T: tl.constexpr,
):
    rows = rows_v * VECTOR if FLAT else rows_v
    row = row_v if FLAT else row_v * VECTOR
    place, c, inside = columns_of(row, CHANNELS, PLANE, COLUMNS, True)
    mean = per_column(statistics_ptr, c, inside, 0)
    r = per_column(statistics_ptr + channels, c, inside, 0)
    scale = per_column(weight_ptr, c, inside, 1) * r
    bias = per_column(bias_ptr, c, inside, 0)

    partial = partial_ptr + c
    partial_step = tl.cast(channels, tl.int64) * 3
    sum0 = _sum_splits(partial, partial_step, splits, inside, BLOCK_S, COLUMNS, T)
    sum1 = _sum_splits(partial + channels, partial_step, splits, inside, BLOCK_S, COLUMNS, T) * r
    inverse = 1.0 / count.to(T) if TRAINING else 0.0
    # Per-channel results are written by one column and one program of the channel.
    writes = (inside & (place % PLANE + tl.program_id(1) == 0))[None, :]
    # Both derivatives are linear in xc, G and v: the coefficients are computed here, once for all rows.
    if SECOND:
        vg = _sum_splits(partial + 2 * channels, partial_step, splits, inside, BLOCK_S, COLUMNS, T)
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
        slope = r * p  # the coefficient of xc in d_grad and of G in d_input
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
        begin, stride = rows_of(BLOCK_M, INDEX)
        offsets, mask = tile_at(begin, rows, place, inside, row, channels, LENGTH, FLAT, PLANE, BLOCK_M, True)
        current = _load(input_ptr, grad_ptr, grad_grad_ptr, offsets, mask)
        for start in range(begin, rows, stride):
            offsets, mask = tile_at(
                start + stride, rows, place, inside, row, channels, LENGTH, FLAT, PLANE, BLOCK_M, True
            )
            prefetched = _load(input_ptr, grad_ptr, grad_grad_ptr, offsets, mask)
            xc, grad, v, passes = _elements(*current, mean, scale, bias, grad_grad_ptr is not None, RELU, T)
            offsets, mask = tile_at(start, rows, place, inside, row, channels, LENGTH, FLAT, PLANE, BLOCK_M, True)
            if SECOND:
                first = scale * v + (slope * xc + offset)
                if RELU:
                    first = tl.where(passes, first, 0.0)
                if second_ptr is not None:
                    second = slope * grad + second_v * v - (second_xc * xc + second_offset)
                    tl.store(second_ptr + offsets, second.to(second_ptr.dtype.element_ty), mask=mask)
            else:
                first = scale * grad + (slope * xc + offset)
            tl.store(output_ptr + offsets, first.to(output_ptr.dtype.element_ty), mask=mask)
            current = prefetched

# mypy: allow-untyped-defs
"""Triton: the kernels of batch normalisation. The formulas are those of csrc/batch_norm_problem.h.

xc = x - mean, z = xc / sqrt(var + eps), G is the gradient behind the ReLU's mask, v the gradient of dx. A tile is
[BLOCK_M elements of a channel, BLOCK_C channels]. Channels outermost (B, C, L): one channel wide. Channels innermost,
[B * L, C]: up to 64. program_id(0) counts channel tiles, program_id(1) the parts of a channel's M = B * L elements.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .gaussians import exact


@triton.jit
def _place(m, c, channels, LENGTH: tl.constexpr, INNERMOST: tl.constexpr):
    """Offsets of elements m of channels c."""
    m = m.to(tl.int64)[:, None]
    c = c.to(tl.int64)[None, :]
    return m * channels + c if INNERMOST else (m // LENGTH * channels + c) * LENGTH + m % LENGTH


@triton.jit
def _channel(ptr, c, inside, otherwise: tl.constexpr):
    """Row [1, BLOCK_C] of a vector [C], or `otherwise` where there is none."""
    if ptr is None:
        row = tl.full(c.shape, otherwise, tl.float32)
    else:
        row = tl.load(ptr + c, mask=inside, other=0.0)
    return row[None, :]


@triton.jit
def statistics_kernel(
    input_ptr,  # [B, C, L]
    partial_ptr,  # [splits, 3, C]: mean, sum of squares around it, elements
    channels,
    count,  # M
    per_split,
    LENGTH: tl.constexpr,
    INNERMOST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    T: tl.constexpr,
):
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < channels
    begin = tl.program_id(1).to(tl.int64) * per_split
    end = tl.minimum(begin + per_split, count)
    size = tl.maximum(end - begin, 0).to(T)
    total = tl.zeros([BLOCK_M, BLOCK_C], T)
    for start in range(begin, end, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        mask = (m < end)[:, None] & inside[None, :]
        total += tl.load(input_ptr + _place(m, c, channels, LENGTH, INNERMOST), mask=mask, other=0.0).to(T)
    rough = tl.sum(total, 0) / tl.maximum(size, 1)
    total = tl.zeros([BLOCK_M, BLOCK_C], T)
    squares = tl.zeros([BLOCK_M, BLOCK_C], T)
    for start in range(begin, end, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        mask = (m < end)[:, None] & inside[None, :]
        x = tl.load(input_ptr + _place(m, c, channels, LENGTH, INNERMOST), mask=mask, other=0.0).to(T)
        xc = tl.where(mask, x - rough[None, :], 0.0)
        total += xc
        squares += xc * xc
    # The second pass corrects the first one's rounding of the mean.
    rest = tl.sum(total, 0)
    mean = rough + rest / tl.maximum(size, 1)
    part = partial_ptr + tl.program_id(1).to(tl.int64) * 3 * channels
    tl.store(part + c, mean, mask=inside)
    tl.store(part + channels + c, tl.sum(squares, 0) - rest * rest / tl.maximum(size, 1), mask=inside)
    tl.store(part + 2 * channels + c, tl.zeros([BLOCK_C], T) + size, mask=inside)


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
    T: tl.constexpr,
):
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < channels
    exact_momentum = exact(momentum, momentum_low, tl.float64)
    if TRAINING:
        mean = tl.zeros([BLOCK_C], tl.float64)
        squares = tl.zeros([BLOCK_C], tl.float64)
        known = tl.zeros([BLOCK_C], tl.float64)
        for split in range(splits):  # Chan et al.
            part = partial_ptr + tl.cast(split, tl.int64) * 3 * channels + c
            more = tl.load(part + 2 * channels, mask=inside, other=0.0).to(tl.float64)
            delta = tl.load(part, mask=inside, other=0.0).to(tl.float64) - mean
            share = tl.where(more > 0, more / tl.maximum(known + more, 1.0), 0.0)
            squares += tl.load(part + channels, mask=inside, other=0.0).to(tl.float64) + delta * delta * known * share
            mean += delta * share
            known += more
        variance = squares / count
        if running_mean_ptr is not None:
            old = tl.load(running_mean_ptr + c, mask=inside, other=0.0)
            tl.store(running_mean_ptr + c, (old + exact_momentum * (mean - old)).to(T), mask=inside)
        if running_var_ptr is not None:
            old = tl.load(running_var_ptr + c, mask=inside, other=0.0)
            unbiased = squares / (count - 1)
            tl.store(running_var_ptr + c, (old + exact_momentum * (unbiased - old)).to(T), mask=inside)
    else:
        mean = tl.load(running_mean_ptr + c, mask=inside, other=0.0).to(tl.float64)
        variance = tl.load(running_var_ptr + c, mask=inside, other=0.0).to(tl.float64)
    tl.store(statistics_ptr + c, mean.to(T), mask=inside)
    tl.store(
        statistics_ptr + channels + c, (1.0 / tl.sqrt(variance + exact(eps, eps_low, tl.float64))).to(T), mask=inside
    )


@triton.jit
def forward_kernel(
    output_ptr,  # [B, C, L]
    input_ptr,  # [B, C, L]
    weight_ptr,  # [C] or None
    bias_ptr,  # [C] or None
    statistics_ptr,  # [2, C]
    channels,
    count,
    per_split,
    RELU: tl.constexpr,
    LENGTH: tl.constexpr,
    INNERMOST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    T: tl.constexpr,
):
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < channels
    mean = _channel(statistics_ptr, c, inside, 0)
    scale = _channel(weight_ptr, c, inside, 1) * _channel(statistics_ptr + channels, c, inside, 0)
    bias = _channel(bias_ptr, c, inside, 0)
    begin = tl.program_id(1).to(tl.int64) * per_split
    end = tl.minimum(begin + per_split, count)
    for start in range(begin, end, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        mask = (m < end)[:, None] & inside[None, :]
        at = _place(m, c, channels, LENGTH, INNERMOST)
        y = scale * (tl.load(input_ptr + at, mask=mask, other=0.0).to(T) - mean) + bias
        if RELU:
            y = tl.where(y <= 0, 0.0, y)
        tl.store(output_ptr + at, y.to(output_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _element(input_ptr, grad_ptr, grad_grad_ptr, at, mask, mean, scale, bias, RELU: tl.constexpr, T: tl.constexpr):
    """(xc, G, v, where the ReLU passes)."""
    xc = tl.where(mask, tl.load(input_ptr + at, mask=mask, other=0.0).to(T) - mean, 0.0)
    grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(T)
    passes = mask
    if RELU:
        passes = tl.where(scale * xc + bias <= 0, False, mask)
        grad = tl.where(passes, grad, 0.0)
    v = grad * 0
    if grad_grad_ptr is not None:
        v = tl.load(grad_grad_ptr + at, mask=mask, other=0.0).to(T)
    return xc, grad, v, passes


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
    count,
    per_split,
    SECOND: tl.constexpr,
    RELU: tl.constexpr,
    LENGTH: tl.constexpr,
    INNERMOST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    T: tl.constexpr,
):
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < channels
    mean = _channel(statistics_ptr, c, inside, 0)
    scale = _channel(weight_ptr, c, inside, 1) * _channel(statistics_ptr + channels, c, inside, 0)
    bias = _channel(bias_ptr, c, inside, 0)
    begin = tl.program_id(1).to(tl.int64) * per_split
    end = tl.minimum(begin + per_split, count)
    sum0 = tl.zeros([BLOCK_M, BLOCK_C], T)
    sum1 = tl.zeros([BLOCK_M, BLOCK_C], T)
    sum2 = tl.zeros([BLOCK_M, BLOCK_C], T)
    for start in range(begin, end, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        mask = (m < end)[:, None] & inside[None, :]
        at = _place(m, c, channels, LENGTH, INNERMOST)
        xc, grad, v, _ = _element(input_ptr, grad_ptr, grad_grad_ptr, at, mask, mean, scale, bias, RELU, T)
        factor = v if SECOND else grad
        sum0 += factor
        sum1 += factor * xc
        if SECOND:
            sum2 += v * grad
    part = partial_ptr + tl.program_id(1).to(tl.int64) * 3 * channels + c
    tl.store(part, tl.sum(sum0, 0), mask=inside)
    tl.store(part + channels, tl.sum(sum1, 0), mask=inside)
    tl.store(part + 2 * channels, tl.sum(sum2, 0), mask=inside)


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
    count,
    per_split,
    splits,  # of partial; 0 if nothing needs the sums
    TRAINING: tl.constexpr,
    SECOND: tl.constexpr,
    RELU: tl.constexpr,
    LENGTH: tl.constexpr,
    INNERMOST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,  # power of two >= splits
    T: tl.constexpr,
):
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < channels
    mean = _channel(statistics_ptr, c, inside, 0)
    r = _channel(statistics_ptr + channels, c, inside, 0)
    weight = _channel(weight_ptr, c, inside, 1)
    bias = _channel(bias_ptr, c, inside, 0)
    scale = weight * r

    split = tl.arange(0, BLOCK_S)
    part = partial_ptr + split.to(tl.int64)[:, None] * 3 * channels + c[None, :]
    there = (split < splits)[:, None] & inside[None, :]
    sum0 = tl.sum(tl.load(part, mask=there, other=0.0), 0)[None, :]
    sum1 = tl.sum(tl.load(part + channels, mask=there, other=0.0), 0)[None, :] * r
    inverse = 1.0 / count.to(T) if TRAINING else 0.0
    writes = (inside & (c * 0 + tl.program_id(1) == 0))[None, :]
    if SECOND:
        vg = tl.sum(tl.load(part + 2 * channels, mask=there, other=0.0), 0)[None, :]
        s0 = _channel(sums_ptr, c, inside, 0)
        s1 = s0 * 0 if sums_ptr is None else _channel(sums_ptr + channels, c, inside, 0)
        u0 = _channel(grad_sums_ptr, c, inside, 0)
        u1 = u0 * 0 if grad_sums_ptr is None else _channel(grad_sums_ptr + channels, c, inside, 0)
        # <v, dx> = r * weight * inner, and its derivative with respect to z = xc * r is e = p G + q v.
        inner = vg - (s0 * sum0 + s1 * sum1) * inverse
        p = u1 - scale * sum1 * inverse
        q = -scale * s1 * inverse
        mean_e = (p * s0 + q * sum0) * inverse
        mean_ez = (p * s1 + q * sum1) * inverse
        tl.store(per_channel_ptr + c[None, :], r * inner, mask=writes)
    elif per_channel_ptr is not None:
        tl.store(per_channel_ptr + c[None, :], sum0, mask=writes)
        tl.store(per_channel_ptr + channels + c[None, :], sum1, mask=writes)
    if output_ptr is not None:
        begin = tl.program_id(1).to(tl.int64) * per_split
        end = tl.minimum(begin + per_split, count)
        for start in range(begin, end, BLOCK_M):
            m = start + tl.arange(0, BLOCK_M)
            mask = (m < end)[:, None] & inside[None, :]
            at = _place(m, c, channels, LENGTH, INNERMOST)
            xc, grad, v, passes = _element(input_ptr, grad_ptr, grad_grad_ptr, at, mask, mean, scale, bias, RELU, T)
            z = xc * r
            if SECOND:
                first = scale * (v - (sum0 + z * sum1) * inverse) + u1 * z + u0
                first = tl.where(passes, first, 0.0)
                if second_ptr is not None:
                    second = r * (p * grad + q * v - mean_e - z * (mean_ez + scale * inner * inverse))
                    tl.store(second_ptr + at, second.to(second_ptr.dtype.element_ty), mask=mask)
            else:
                first = scale * (grad - (sum0 + z * sum1) * inverse)
            tl.store(output_ptr + at, first.to(output_ptr.dtype.element_ty), mask=mask)

# mypy: allow-untyped-defs
"""Triton: from the gradient of a heatmap to the gradients of its landmarks and weights.

`raw_gradient_kernel`, one program per sample, backpropagates through the normalisation and records which landmark each
cell's maximum came from; an unnormalised sum skips it. `landmark_gradient_kernel`, one program per few landmarks of a
sample, sums over the map.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .gaussians import cell_centres, exact, heatmap_at, load_landmarks
from .score import PEAK


@triton.jit
def raw_gradient_kernel(
    grad_ptr,  # [B, H, W]
    landmarks_ptr,  # [B, K, 2]
    visible_ptr,  # [B, K] or None
    weights_ptr,  # [B, K] or None
    raw_ptr,  # [B, H, W]: the gradient of the unnormalised heatmap
    winner_ptr,  # [B, H, W] int32 or None: the argmax landmark of each cell, -1 if there is none
    count,
    cells,
    width,
    step_x,
    step_x_low,
    step_y,
    step_y_low,
    falloff,
    falloff_low,
    MAXIMUM: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    T: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    base = sample * cells
    scale_x = exact(step_x, step_x_low, T)
    scale_y = exact(step_y, step_y_low, T)
    decay = exact(falloff, falloff_low, T)

    # 1. Recompute the heatmap into raw, with its total, its peak, and sum(grad * h).
    totals = tl.zeros([BLOCK_N], tl.float64)
    products = tl.zeros([BLOCK_N], tl.float64)
    peaks = tl.full([BLOCK_N], float("-inf"), T)
    for block in range(0, cells, BLOCK_N):
        cell = block + tl.arange(0, BLOCK_N)
        inside = cell < cells
        x, y = cell_centres(cell, width, scale_x, scale_y)
        if MAXIMUM:
            h = tl.full([BLOCK_N], float("-inf"), T)
            winner = tl.full([BLOCK_N], -1, tl.int32)
            for k in range(count):
                xk, yk, wk, valid = load_landmarks(landmarks_ptr, visible_ptr, weights_ptr, sample, k, count, T)
                dx = x - xk
                dy = y - yk
                term = wk * tl.exp(decay * (dx * dx + dy * dy))
                wins = valid & (term > h)  # ties go to the first landmark
                h = tl.where(wins, term, h)
                winner = tl.where(wins, k, winner)
            h = tl.where(winner >= 0, h, 0.0)
            tl.store(winner_ptr + base + cell, winner, mask=inside)
        else:
            h = heatmap_at(
                x, y, landmarks_ptr, visible_ptr, weights_ptr, sample, count, decay, False, BLOCK_N, BLOCK_K, T
            )
        grad = tl.load(grad_ptr + base + cell, mask=inside, other=0.0)
        if NORMALIZE == 0:
            tl.store(raw_ptr + base + cell, grad, mask=inside)
        else:
            tl.store(raw_ptr + base + cell, h, mask=inside)
            totals += tl.where(inside, h, 0.0).to(tl.float64)
            products += tl.where(inside, grad * h, 0.0).to(tl.float64)
            peaks = tl.maximum(peaks, tl.where(inside, h, float("-inf")))

    # 2. Through the division: d raw = grad / D - d D * sum(grad * h) / D^2. The derivative of the peak is
    # shared equally by the cells that attain it; that of the total is 1 everywhere.
    if NORMALIZE != 0:
        peak = tl.max(peaks, axis=0)
        divisor = peak.to(tl.float64) if NORMALIZE == PEAK else tl.sum(totals, axis=0)
        peak_cells = tl.full([], 1.0, tl.float64)
        tl.debug_barrier()
        if NORMALIZE == PEAK:
            holding = tl.zeros([BLOCK_N], tl.int32)
            for block in range(0, cells, BLOCK_N):
                cell = block + tl.arange(0, BLOCK_N)
                h = tl.load(raw_ptr + base + cell, mask=cell < cells, other=float("-inf"))
                holding += ((h == peak) & (cell < cells)).to(tl.int32)
            peak_cells = tl.sum(holding, axis=0).to(tl.float64)
        inverse = 1.0 / tl.where(divisor == 0.0, 1.0, divisor)
        divisor_term = tl.where(divisor == 0.0, 0.0, tl.sum(products, axis=0) * inverse * inverse / peak_cells)
        for block in range(0, cells, BLOCK_N):
            cell = block + tl.arange(0, BLOCK_N)
            inside = cell < cells
            h = tl.load(raw_ptr + base + cell, mask=inside, other=0.0)
            value = tl.load(grad_ptr + base + cell, mask=inside, other=0.0).to(tl.float64) * inverse
            value -= tl.where(h == peak, divisor_term, 0.0) if NORMALIZE == PEAK else divisor_term
            tl.debug_barrier()  # the whole block is read before any of it is written
            tl.store(raw_ptr + base + cell, value, mask=inside)


@triton.jit
def landmark_gradient_kernel(
    raw_ptr,  # [B, H, W]
    winner_ptr,  # [B, H, W] or None
    landmarks_ptr,  # [B, K, 2]
    visible_ptr,  # [B, K] or None
    weights_ptr,  # [B, K] or None
    d_landmarks_ptr,  # [B, K, 2] or None
    d_weights_ptr,  # [B, K] or None
    count,
    cells,
    width,
    groups,  # programs per sample
    step_x,
    step_x_low,
    step_y,
    step_y_low,
    falloff,
    falloff_low,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    T: tl.constexpr,
):
    sample = (tl.program_id(0) // groups).to(tl.int64)
    k = tl.program_id(0) % groups * BLOCK_K + tl.arange(0, BLOCK_K)
    base = sample * cells
    scale_x = exact(step_x, step_x_low, T)
    scale_y = exact(step_y, step_y_low, T)
    decay = exact(falloff, falloff_low, T)
    xk, yk, wk, valid = load_landmarks(landmarks_ptr, visible_ptr, weights_ptr, sample, k, count, T)

    # dh/dw = e, dh/dx = w e (x_j - x_k) / sigma^2, summed over the map in tiles of [BLOCK_K, BLOCK_N].
    along_x = tl.zeros([BLOCK_K, BLOCK_N], T)
    along_y = tl.zeros([BLOCK_K, BLOCK_N], T)
    strength = tl.zeros([BLOCK_K, BLOCK_N], T)
    for block in range(0, cells, BLOCK_N):
        cell = block + tl.arange(0, BLOCK_N)
        inside = cell < cells
        x, y = cell_centres(cell, width, scale_x, scale_y)
        dx = x[None, :] - xk[:, None]
        dy = y[None, :] - yk[:, None]
        value = tl.load(raw_ptr + base + cell, mask=inside, other=0.0)[None, :]
        value = value * tl.exp(decay * (dx * dx + dy * dy))
        if winner_ptr is not None:
            winner = tl.load(winner_ptr + base + cell, mask=inside, other=-1)
            value = tl.where(winner[None, :] == k[:, None], value, 0.0)
        strength += value
        along_x += value * dx
        along_y += value * dy
    inside_k = k < count
    index = sample * count + k
    if d_weights_ptr is not None:
        tl.store(d_weights_ptr + index, tl.where(valid, tl.sum(strength, axis=1), 0.0), mask=inside_k)
    if d_landmarks_ptr is not None:
        scale = -2.0 * decay * wk
        tl.store(d_landmarks_ptr + 2 * index, tl.where(valid, tl.sum(along_x, axis=1) * scale, 0.0), mask=inside_k)
        tl.store(d_landmarks_ptr + 2 * index + 1, tl.where(valid, tl.sum(along_y, axis=1) * scale, 0.0), mask=inside_k)

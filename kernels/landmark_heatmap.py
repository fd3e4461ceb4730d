# mypy: allow-untyped-defs
"""Triton: heatmaps of landmarks in one launch, and their gradients in one (sum, not normalised) or two."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pal_fast.constants import COMBINE, NORMALIZE

from .gaussians import cell_centres, exact, heatmap_at, heatmap_tile, is_last, load_landmarks
from .launch import (
    accumulator,
    ceil_div,
    high_and_low,
    matrix_precision,
    on_device,
    power_of_two,
    tile_sides,
    vector_width,
    zeroed_counters,
)
from .score import PEAK, TOTAL

#: Cells that a program of the backward takes at once.
BLOCK_CELLS = 1024


@triton.jit
def landmark_heatmap_kernel(
    heatmap_ptr,  # [B, H, W]
    landmarks_ptr,  # [B, K, 2]
    visible_ptr,  # [B, K] or None
    weights_ptr,  # [B, K] or None
    divisors_ptr,  # [B, tiles] workspace of normalize with several tiles: each tile's maximum or total
    counters_ptr,  # [B] int32 zeros, left at zero
    count,  # K
    height,
    width_v,  # W / VECTOR
    tiles_h,
    tiles_w,
    step_x,
    step_x_low,
    step_y,
    step_y_low,
    falloff,
    falloff_low,
    MAXIMUM: tl.constexpr,
    NORMALIZE: tl.constexpr,
    PRECISION: tl.constexpr,
    SEVERAL: tl.constexpr,  # more than one tile in a map
    VECTOR: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    T: tl.constexpr,
):
    width = width_v * VECTOR
    tiles = tiles_h * tiles_w
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    i = tile // tiles_w * BLOCK_H + tl.arange(0, BLOCK_H)
    j = tile % tiles_w * BLOCK_W + tl.arange(0, BLOCK_W)

    # 1. The tile.
    h = heatmap_tile(
        i, j, landmarks_ptr, visible_ptr, weights_ptr, sample, count,
        exact(step_x, step_x_low, T), exact(step_y, step_y_low, T), exact(falloff, falloff_low, T),
        MAXIMUM, PRECISION, BLOCK_H, BLOCK_W, T,
    )  # fmt: skip
    inside = (i < height)[:, None] & (j < width)[None, :]
    base = sample * height * width
    offsets = i[:, None] * width + j[None, :]
    if NORMALIZE == PEAK:
        divisor = tl.max(tl.max(tl.where(inside, h, float("-inf")), axis=1), axis=0)
    elif NORMALIZE == TOTAL:
        divisor = tl.sum(tl.sum(tl.where(inside, h, 0.0), axis=1), axis=0)
    if NORMALIZE != 0 and not SEVERAL:
        h = h / tl.where(divisor == 0.0, 1.0, divisor)
    tl.store(heatmap_ptr + base + offsets, h, mask=inside)

    # 2. The last tile of a map divides all of it.
    if NORMALIZE != 0 and SEVERAL:
        tl.store(divisors_ptr + sample * tiles + tile, divisor)
        if is_last(counters_ptr + sample, tiles):
            lanes = tl.arange(0, 1024)
            whole = tl.full([1024], float("-inf") if NORMALIZE == PEAK else 0.0, T)
            for first in range(0, tiles, 1024):
                t = first + lanes
                if NORMALIZE == PEAK:
                    part = tl.load(divisors_ptr + sample * tiles + t, mask=t < tiles, other=float("-inf"))
                    whole = tl.maximum(whole, part)
                else:
                    whole += tl.load(divisors_ptr + sample * tiles + t, mask=t < tiles, other=0.0)
            divisor = tl.max(whole, axis=0) if NORMALIZE == PEAK else tl.sum(whole, axis=0)
            divisor = tl.where(divisor == 0.0, 1.0, divisor)
            for first in range(0, height * width, 1024):
                cells = first + lanes
                value = tl.load(heatmap_ptr + base + cells, mask=cells < height * width, other=0.0)
                tl.store(heatmap_ptr + base + cells, value / divisor, mask=cells < height * width)


@triton.jit
def raw_gradient_kernel(
    grad_ptr,  # [B, H, W]
    landmarks_ptr,  # [B, K, 2]
    visible_ptr,  # [B, K] or None
    weights_ptr,  # [B, K] or None
    raw_ptr,  # [B, H, W]: the gradient of the heatmap before it was normalised
    winner_ptr,  # [B, H, W] int32 or None: the landmark that a maximum took, -1 for none
    count,
    cells_in_map,
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
    base = sample * cells_in_map
    scale_x = exact(step_x, step_x_low, T)
    scale_y = exact(step_y, step_y_low, T)
    decay = exact(falloff, falloff_low, T)

    # 1. The heatmap again, kept in raw; its total, its peak, and sum(grad * h).
    totals = tl.zeros([BLOCK_N], tl.float64)
    products = tl.zeros([BLOCK_N], tl.float64)
    peaks = tl.full([BLOCK_N], float("-inf"), T)
    for block in range(0, cells_in_map, BLOCK_N):
        cells = block + tl.arange(0, BLOCK_N)
        inside = cells < cells_in_map
        x, y = cell_centres(cells, width, scale_x, scale_y)
        if MAXIMUM:
            h = tl.full([BLOCK_N], float("-inf"), T)
            winner = tl.full([BLOCK_N], -1, tl.int32)
            for k in range(count):
                xk, yk, wk, valid = load_landmarks(landmarks_ptr, visible_ptr, weights_ptr, sample, k, count, T)
                dx = x - xk
                dy = y - yk
                term = wk * tl.exp(decay * (dx * dx + dy * dy))
                wins = valid & (term > h)  # a tie stays with the first
                h = tl.where(wins, term, h)
                winner = tl.where(wins, k, winner)
            h = tl.where(winner >= 0, h, 0.0)
            tl.store(winner_ptr + base + cells, winner, mask=inside)
        else:
            h = heatmap_at(
                x, y, landmarks_ptr, visible_ptr, weights_ptr, sample, count, decay, False, BLOCK_N, BLOCK_K, T
            )
        grad = tl.load(grad_ptr + base + cells, mask=inside, other=0.0)
        if NORMALIZE == 0:
            tl.store(raw_ptr + base + cells, grad, mask=inside)
        else:
            tl.store(raw_ptr + base + cells, h, mask=inside)
            totals += tl.where(inside, h, 0.0).to(tl.float64)
            products += tl.where(inside, grad * h, 0.0).to(tl.float64)
            peaks = tl.maximum(peaks, tl.where(inside, h, float("-inf")))

    # 2. Through the division: d raw = grad / D - d D * sum(grad * h) / D^2. The derivative of a maximum is
    # shared by the cells that hold it, that of a total is 1 everywhere.
    if NORMALIZE != 0:
        peak = tl.max(peaks, axis=0)
        divisor = peak.to(tl.float64) if NORMALIZE == PEAK else tl.sum(totals, axis=0)
        holders = tl.full([], 1.0, tl.float64)
        tl.debug_barrier()
        if NORMALIZE == PEAK:
            holding = tl.zeros([BLOCK_N], tl.int32)
            for block in range(0, cells_in_map, BLOCK_N):
                cells = block + tl.arange(0, BLOCK_N)
                h = tl.load(raw_ptr + base + cells, mask=cells < cells_in_map, other=float("-inf"))
                holding += ((h == peak) & (cells < cells_in_map)).to(tl.int32)
            holders = tl.sum(holding, axis=0).to(tl.float64)
        inverse = 1.0 / tl.where(divisor == 0.0, 1.0, divisor)
        pull = tl.where(divisor == 0.0, 0.0, tl.sum(products, axis=0) * inverse * inverse / holders)
        for block in range(0, cells_in_map, BLOCK_N):
            cells = block + tl.arange(0, BLOCK_N)
            inside = cells < cells_in_map
            h = tl.load(raw_ptr + base + cells, mask=inside, other=0.0)
            value = tl.load(grad_ptr + base + cells, mask=inside, other=0.0).to(tl.float64) * inverse
            value -= tl.where(h == peak, pull, 0.0) if NORMALIZE == PEAK else pull
            tl.debug_barrier()  # all of the block is read before any is written
            tl.store(raw_ptr + base + cells, value, mask=inside)


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
    cells_in_map,
    width,
    groups,  # programs of a sample
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
    base = sample * cells_in_map
    scale_x = exact(step_x, step_x_low, T)
    scale_y = exact(step_y, step_y_low, T)
    decay = exact(falloff, falloff_low, T)
    xk, yk, wk, valid = load_landmarks(landmarks_ptr, visible_ptr, weights_ptr, sample, k, count, T)

    # dh/dw = e, dh/dx = w e (x_j - x_k) / sigma^2, summed over the map: [BLOCK_K, BLOCK_N] at once.
    along_x = tl.zeros([BLOCK_K, BLOCK_N], T)
    along_y = tl.zeros([BLOCK_K, BLOCK_N], T)
    strength = tl.zeros([BLOCK_K, BLOCK_N], T)
    for block in range(0, cells_in_map, BLOCK_N):
        cells = block + tl.arange(0, BLOCK_N)
        inside = cells < cells_in_map
        x, y = cell_centres(cells, width, scale_x, scale_y)
        dx = x[None, :] - xk[:, None]
        dy = y[None, :] - yk[:, None]
        value = tl.load(raw_ptr + base + cells, mask=inside, other=0.0)[None, :]
        value = value * tl.exp(decay * (dx * dx + dy * dy))
        if winner_ptr is not None:
            winner = tl.load(winner_ptr + base + cells, mask=inside, other=-1)
            value = tl.where(winner[None, :] == k[:, None], value, 0.0)
        strength += value
        along_x += value * dx
        along_y += value * dy
    inside_k = k < count
    index = sample * count + k
    if d_weights_ptr is not None:
        tl.store(d_weights_ptr + index, tl.where(valid, tl.sum(strength, axis=1), 0.0), mask=inside_k)
    if d_landmarks_ptr is not None:
        gain = -2.0 * decay * wk
        tl.store(d_landmarks_ptr + 2 * index, tl.where(valid, tl.sum(along_x, axis=1) * gain, 0.0), mask=inside_k)
        tl.store(d_landmarks_ptr + 2 * index + 1, tl.where(valid, tl.sum(along_y, axis=1) * gain, 0.0), mask=inside_k)


def frame(image_height: float, image_width: float, size: tuple[int, int], sigma: float) -> dict[str, float]:
    """Pixels of the image per cell along x and y, and -1 / (2 sigma^2), as the kernels take doubles."""
    values = {"step_x": image_width / size[1], "step_y": image_height / size[0], "falloff": -0.5 / (sigma * sigma)}
    arguments: dict[str, float] = {}
    for name, value in values.items():
        arguments[name], arguments[f"{name}_low"] = high_and_low(value)
    return arguments


def landmark_heatmap(
    landmarks: Tensor,
    visible: Tensor | None,
    weights: Tensor | None,
    height: int,
    width: int,
    image_height: float,
    image_width: float,
    sigma: float,
    combine: int,
    normalize: int,
) -> Tensor:
    """Heatmaps [B, H, W] of landmarks [B, K, 2], in pixels of the image; visible, weights [B, K] or None."""
    batch, count = landmarks.shape[:2]
    heatmap = landmarks.new_empty((batch, height, width))
    if heatmap.numel() == 0:
        return heatmap
    block_h, block_w = tile_sides(height, width, 64)
    tiles_h, tiles_w = ceil_div(height, block_h), ceil_div(width, block_w)
    divides = NORMALIZE[normalize] != "none" and tiles_h * tiles_w > 1
    vector = vector_width(landmarks.dtype, width)
    with on_device(landmarks):
        landmark_heatmap_kernel[(batch * tiles_h * tiles_w,)](
            heatmap_ptr=heatmap,
            landmarks_ptr=landmarks,
            visible_ptr=visible,
            weights_ptr=weights,
            divisors_ptr=landmarks.new_empty(batch, tiles_h * tiles_w) if divides else None,
            counters_ptr=zeroed_counters(batch, landmarks) if divides else None,
            count=count,
            height=height,
            width_v=width // vector,
            tiles_h=tiles_h,
            tiles_w=tiles_w,
            **frame(image_height, image_width, (height, width), sigma),
            MAXIMUM=COMBINE[combine] == "max",
            NORMALIZE=normalize,
            PRECISION=matrix_precision(),
            SEVERAL=tiles_h * tiles_w > 1,
            VECTOR=vector,
            BLOCK_H=block_h,
            BLOCK_W=block_w,
            T=accumulator(landmarks.dtype),
            num_warps=4,
        )
    return heatmap


def landmark_heatmap_backward(
    grad: Tensor,
    landmarks: Tensor,
    visible: Tensor | None,
    weights: Tensor | None,
    height: int,
    width: int,
    image_height: float,
    image_width: float,
    sigma: float,
    combine: int,
    normalize: int,
    need_landmarks: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of landmarks [B, K, 2] and weights [B, K] from grad [B, H, W]; 0 elements for one not needed."""
    batch, count = landmarks.shape[:2]
    d_landmarks = torch.empty_like(landmarks) if need_landmarks else landmarks.new_empty(0)
    d_weights = landmarks.new_empty((batch, count)) if need_weights else landmarks.new_empty(0)
    if batch * count == 0 or not (need_landmarks or need_weights):
        return d_landmarks, d_weights
    cells = height * width
    block_n = min(power_of_two(cells), BLOCK_CELLS)
    block_k = max(1, min(4, 2048 // block_n))
    maximum, divided = COMBINE[combine] == "max", NORMALIZE[normalize] != "none"
    shared = {
        "landmarks_ptr": landmarks,
        "visible_ptr": visible,
        "weights_ptr": weights,
        "count": count,
        "cells_in_map": cells,
        "width": width,
        **frame(image_height, image_width, (height, width), sigma),
        "BLOCK_N": block_n,
        "BLOCK_K": block_k,
        "T": accumulator(landmarks.dtype),
        "num_warps": 4,
    }
    raw = torch.empty_like(grad) if maximum or divided else grad
    winner = grad.new_empty(grad.shape, dtype=torch.int32) if maximum else None
    groups = ceil_div(count, block_k)
    with on_device(landmarks):
        if maximum or divided:
            raw_gradient_kernel[(batch,)](
                grad_ptr=grad, raw_ptr=raw, winner_ptr=winner, MAXIMUM=maximum, NORMALIZE=normalize, **shared
            )
        landmark_gradient_kernel[(batch * groups,)](
            raw_ptr=raw,
            winner_ptr=winner,
            d_landmarks_ptr=d_landmarks if need_landmarks else None,
            d_weights_ptr=d_weights if need_weights else None,
            groups=groups,
            **shared,
        )
    return d_landmarks, d_weights

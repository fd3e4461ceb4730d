# mypy: allow-untyped-defs
"""Triton: landmark heatmaps in one launch, one tile of a map per program.

A map of a single tile is normalised before it is stored. A map of several tiles is stored unnormalised, and the last
of its programs to finish reduces every tile's maximum or total and divides the whole map.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .gaussians import exact, heatmap_tile, is_last
from .score import PEAK, TOTAL


@triton.jit
def landmark_heatmap_kernel(
    heatmap_ptr,  # [B, H, W]
    landmarks_ptr,  # [B, K, 2]
    visible_ptr,  # [B, K] or None
    weights_ptr,  # [B, K] or None
    divisors_ptr,  # [B, tiles], workspace for normalize with several tiles: each tile's maximum or total
    tickets_ptr,  # [B] int32 arrival counters: zero on entry and on exit
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
        MAXIMUM, BLOCK_H, BLOCK_W, T,
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

    # 2. The last program of a map divides all of it.
    if NORMALIZE != 0 and SEVERAL:
        tl.store(divisors_ptr + sample * tiles + tile, divisor)
        if is_last(tickets_ptr + sample, tiles):
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

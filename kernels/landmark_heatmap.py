"""The Triton versions of `landmark_heatmap` and `landmark_heatmap_backward`: outputs, workspaces and launches.

One launch forward; one launch backward for an unnormalised sum, otherwise two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pal_fast.constants import COMBINE, NORMALIZE

from .landmark_heatmap_backward import landmark_gradient_kernel, raw_gradient_kernel
from .landmark_heatmap_forward import landmark_heatmap_kernel
from .launch import (
    OPTIONS,
    accumulator,
    ceil_div,
    high_and_low,
    on_device,
    power_of_two,
    tile_sides,
    vector_width,
    zeroed_tickets,
)

#: Cells that a program of the backward processes at once.
BLOCK_CELLS = 1024


def frame(image_height: float, image_width: float, size: tuple[int, int], sigma: float) -> dict[str, float]:
    """Image pixels per cell along x and y, and -1 / (2 sigma^2), each as the high and low part of a double."""
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
    """Heatmaps [B, H, W] of landmarks [B, K, 2] in image pixels; visible, weights [B, K] or None."""
    batch, count = landmarks.shape[:2]
    heatmap = landmarks.new_empty((batch, height, width))
    if heatmap.numel() == 0:
        return heatmap
    block_h, block_w = tile_sides(height, width, 64, 128)
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
            tickets_ptr=zeroed_tickets(batch, landmarks) if divides else None,
            count=count,
            height=height,
            width_v=width // vector,
            tiles_h=tiles_h,
            tiles_w=tiles_w,
            **frame(image_height, image_width, (height, width), sigma),
            MAXIMUM=COMBINE[combine] == "max",
            NORMALIZE=normalize,
            SEVERAL=tiles_h * tiles_w > 1,
            VECTOR=vector,
            BLOCK_H=block_h,
            BLOCK_W=block_w,
            T=accumulator(landmarks.dtype),
            **OPTIONS,
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
    """Gradients of landmarks [B, K, 2] and weights [B, K] from grad [B, H, W]; one not needed has no elements."""
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
        "cells": cells,
        "width": width,
        **frame(image_height, image_width, (height, width), sigma),
        "BLOCK_N": block_n,
        "BLOCK_K": block_k,
        "T": accumulator(landmarks.dtype),
        **OPTIONS,
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

"""Landmarks that are none, or in another unit: what their values alone can tell."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: In pixels; see `look_normalised`.
CORNER = 3
LEAST_SIDE = 16

#: How to put normalised landmarks right.
IN_PIXELS = "multiply normalised ones by (width, height), after (p + 1) / 2 where they go from -1 to 1"


def look_normalised(points: Tensor, known: Tensor, image_size: tuple[int, int]) -> Tensor:
    """(B,) bool: samples whose landmarks all lie within `CORNER` pixels of the image's first pixel, which those of no
    face do and normalised ones always; none where the image is too small to tell.

    Args: points (B, K, 2); known (B, K) bool, at least one for a sample that is to be judged.
    """
    if min(image_size) < LEAST_SIDE:
        return torch.zeros(len(points), dtype=torch.bool, device=points.device)
    return known.any(1) & ((points.abs() < CORNER).all(-1) | ~known).all(1)


def coincide(points: Tensor, known: Tensor) -> Tensor:
    """(B,) bool: samples with two or more landmarks, all in one point, as those of a face that was not found.

    Args: points (B, K, 2); known (B, K) bool.
    """
    if points.shape[1] < 2:
        return torch.zeros(len(points), dtype=torch.bool, device=points.device)
    points = points.float()
    low = points.masked_fill(~known[..., None], math.inf).amin(1)
    high = points.masked_fill(~known[..., None], -math.inf).amax(1)
    return (known.sum(1) > 1) & (low == high).all(-1)

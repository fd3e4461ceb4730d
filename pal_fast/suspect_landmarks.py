"""Detects missing landmarks, and landmarks in the wrong unit or order, by their values alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: In pixels; see `look_normalised`.
CORNER = 3
LEAST_SIDE = 16

_IN_PIXELS = "multiply normalised ones by (width, height), after (p + 1) / 2 where they go from -1 to 1"


def span(points: Tensor) -> str:
    """The range of points (N, 2), N at least 1."""
    (left, top), (right, bottom) = (values.tolist() for values in points.aminmax(dim=0))
    return f"x from {left:.4g} to {right:.4g}, y from {top:.4g} to {bottom:.4g}"


def normalised_text(which: str, points: Tensor, image: str) -> str:
    """The message about landmarks that `look_normalised`: what is wrong, and how to convert them.

    Args:
        which: the landmarks, as the subject of the sentence.
        points: (N, 2), their values.
        image: the image in whose pixels they must be, and its size.
    """
    return (
        f"{which} lie within {CORNER} pixels of the image's corner ({span(points)}), as normalised ones do: they must "
        f"be in pixels of {image}; {_IN_PIXELS}"
    )


def look_normalised(points: Tensor, known: Tensor, image_size: tuple[int, int]) -> Tensor:
    """(B,) bool: samples whose landmarks all lie within `CORNER` pixels of the image's first pixel, as normalised ones
    always do and those of a real face never do. All False if the image is too small to tell.

    Args: points (B, K, 2); known (B, K) bool; a sample without any known landmark is False.
    """
    if min(image_size) < LEAST_SIDE:
        return torch.zeros(len(points), dtype=torch.bool, device=points.device)
    return known.any(1) & ((points.abs() < CORNER).all(-1) | ~known).all(1)


def coincide(points: Tensor, known: Tensor) -> Tensor:
    """(B,) bool: samples with two or more landmarks, all in one point, as for a face that was not found.

    Args: points (B, K, 2); known (B, K) bool.
    """
    if points.shape[1] < 2:
        return torch.zeros(len(points), dtype=torch.bool, device=points.device)
    points = points.float()
    low = points.masked_fill(~known[..., None], math.inf).amin(1)
    high = points.masked_fill(~known[..., None], -math.inf).amax(1)
    return (known.sum(1) > 1) & (low == high).all(-1)


#: Of the 68-point scheme.
_EYES, _MOUTH = slice(36, 48), slice(48, 68)


def lying(points: Tensor) -> tuple[int, int]:
    """How many faces have a mouth that does not lie below their eyes, as where x and y are swapped, and of how many
    this can be told: of none unless the landmarks are those of the 68-point scheme.

    Args: points (N, K, 2), (x, y), NaN for missing ones.
    """
    if points.shape[1] != 68:
        return 0, 0
    right, down = (points[:, _MOUTH].nanmean(1) - points[:, _EYES].nanmean(1)).unbind(-1)  # (N,)
    return int((down <= right.abs()).sum()), int((right.isfinite() & down.isfinite()).sum())

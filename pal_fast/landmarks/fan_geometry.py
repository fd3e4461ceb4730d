"""The geometry of FAN: from a face's box to the network's square input, and from its heatmaps to pixels of the image.

FAN (Bulat and Tzimiropoulos, ICCV 2017) sees a square of 200/195 times the box's width plus height, a little above the
box's centre, and returns one heatmap per landmark. face-alignment's own code rounds to whole pixels of the image twice
on the way, which on a face of 100 pixels is an error of the size of a lip; here nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from pal_fast.landmarks.geometry import Window

INPUT_SIZE: Final = 256
_SIDE_PER_BOX: Final = 200  # times (width + height), divided by the detector's reference
REFERENCE: Final = 195.0
_UPWARDS: Final = 0.12  # as a share of the box's height
_FAINTEST: Final = 0.01  # as a share of the peak; a neighbour below it is noise


def window_of(box: Sequence[float], reference: float = REFERENCE) -> Window:
    """The network's window for a face.

    Args:
        box: (left, top, right, bottom) from the image's corner; the whole image is (0, 0, width, height).
        reference: `reference_scale` of the face-alignment detector that found the box.
    """
    left, top, right, bottom = (float(value) for value in box[:4])
    width, height = right - left, bottom - top
    return Window(
        (left + right) / 2, (top + bottom) / 2 - _UPWARDS * height, (width + height) * _SIDE_PER_BOX / reference
    )


def peaks(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    """The position and value of every heatmap's maximum.

    Refined to subpixels by the parabola through the logarithms of a peak and its two neighbours along each axis, which
    is exact for a Gaussian heatmap.

    Args: heatmaps (B, K, H, W).
    Returns: points (B, K, 2), (x, y) from the corner as shares of the width and height; values (B, K).
    """
    height, width = heatmaps.shape[-2:]
    flat = heatmaps.flatten(2)
    values, index = flat.max(-1)
    column, row = index % width, index // width
    floor = (_FAINTEST * values).clamp_min(1e-12)[..., None]

    def between(place: Tensor, count: int, step: int) -> Tensor:
        """The maximum's offset from the pixel, in [-0.5, 0.5]; `step` is the stride to the next pixel in `flat`."""
        inner = (place > 0) & (place < count - 1)
        adjacent = torch.stack([index - step, index, index + step], -1).where(inner[..., None], index[..., None])
        a, b, c = torch.maximum(flat.gather(2, adjacent), floor).log().unbind(-1)
        curvature = 2 * b - a - c
        return torch.where(inner & (curvature > 1e-6), 0.5 * (c - a) / curvature.clamp_min(1e-6), 0.0).clamp(-0.5, 0.5)

    x = (column + 0.5 + between(column, width, 1)) / width
    y = (row + 0.5 + between(row, height, width)) / height
    return torch.stack([x, y], -1), values


def to_image(shares: Tensor, windows: Sequence[Window]) -> Tensor:
    """(B, K, 2) from shares of the windows to pixels of the images, integers at pixel centres."""
    placed = torch.tensor([[window.x, window.y, window.side] for window in windows], device=shares.device)
    return placed[:, None, :2] + (shares - 0.5) * placed[:, None, 2:] - 0.5

"""The geometry of FAN: from a face's box to the network's square input, and from its heatmaps to pixels of the image.

FAN (Bulat and Tzimiropoulos, ICCV 2017) sees a square of 200/195 times the box's width plus height, a little above the
box's centre, and returns one heatmap per landmark. face-alignment's own code rounds to whole pixels of the image twice
on the way, which on a face of 100 pixels is an error of the size of a lip; here nothing is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

INPUT_SIZE: Final = 256
_SIDE_PER_BOX: Final = 200  # times (width + height), divided by the detector's reference
REFERENCE: Final = 195.0
_UPWARDS: Final = 0.12  # as a share of the box's height
_SHARPEST: Final = 1.5  # pixels of the image per pixel of the input above which the image is first reduced
_FAINTEST: Final = 0.01  # as a share of the peak; a neighbour below it is noise


class Window(NamedTuple):
    """The square of an image that the network sees: its centre from the image's corner, and its side, in pixels."""

    x: float
    y: float
    side: float


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


def crop_face(image: Tensor, window: Window, size: int = INPUT_SIZE) -> Tensor:
    """The window of an image (3, H, W) uint8, as (3, size, size) float32 in [0, 1]; black beyond the image."""
    x, y, side = window
    # Only the visible part, with a margin of one pixel on every side for the interpolation.
    left, top = max(0, math.floor(x - side / 2) - 1), max(0, math.floor(y - side / 2) - 1)
    right, bottom = math.ceil(x + side / 2) + 1, math.ceil(y + side / 2) + 1
    part = image[:, top : max(bottom, top + 1), left : max(right, left + 1)]
    if not part.numel():
        return torch.zeros(3, size, size, device=image.device)
    part = part[None].float() / 255
    height, width = part.shape[-2:]
    step = side / size
    if step > _SHARPEST:
        smaller = [max(1, round(height / step)), max(1, round(width / step))]
        part = torch.nn.functional.interpolate(part, smaller, mode="bilinear", antialias=True, align_corners=False)
    # Pixel i of the crop has its centre at (i + 0.5) / size of the window; grid_sample counts from edge to edge.
    across = (torch.arange(size, device=image.device) + 0.5) / size - 0.5
    u = (x - left + across * side) / width * 2 - 1
    v = (y - top + across * side) / height * 2 - 1
    grid = torch.stack([u.expand(size, size), v[:, None].expand(size, size)], -1)
    return torch.nn.functional.grid_sample(part, grid[None], mode="bilinear", align_corners=False)[0]


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

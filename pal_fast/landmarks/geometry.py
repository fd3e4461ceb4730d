"""Similarity transforms of points, and square windows cut out of images."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor

from pal_fast import _checks

_SHARPEST: Final = 1.5  # pixels of the image per pixel of the crop above which the image is first reduced


def fit_similarity(source: Tensor, target: Tensor) -> Tensor:
    """The rotation, scale and translation that map `source` to `target` in the least-squares sense.

    The closed form of Umeyama (1991) without reflection, in the plane: with centred points as complex numbers
    s and t, the factor is `sum conj(s) t / sum |s|^2`.

    Args: source, target: (..., P, 2), P at least 2 and not all equal.
    Returns: (..., 2, 3), in the dtype of `source`; differentiable.
    Raises: TypeError, ValueError naming the argument.
    """
    _checks.points("source", source)
    _checks.points("target", target)
    _check_dtypes(source=source, target=target)
    if source.shape[-2] < 2 or source.shape[-2] != target.shape[-2]:
        raise ValueError(
            "source and target must hold the same number of points, at least 2, got "
            f"{tuple(source.shape)} and {tuple(target.shape)}"
        )
    source_mean, target_mean = source.mean(-2), target.mean(-2)
    s, t = source - source_mean.unsqueeze(-2), target - target_mean.unsqueeze(-2)
    size = s.square().sum((-2, -1))
    cos = (s * t).sum((-2, -1)) / size
    sin = (s[..., 0] * t[..., 1] - s[..., 1] * t[..., 0]).sum(-1) / size
    matrix = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    shift = target_mean - (matrix @ source_mean.unsqueeze(-1)).squeeze(-1)
    return torch.cat([matrix, shift.unsqueeze(-1)], -1)


def transform_points(points: Tensor, matrix: Tensor) -> Tensor:
    """Args: points (..., K, 2), matrix (..., 2, 3). Returns: (..., K, 2); NaN stays NaN.

    Raises: TypeError, ValueError naming the argument.
    """
    _checks.points("points", points)
    _checks.instance("matrix", matrix, Tensor, "a tensor of shape (..., 2, 3)")
    if matrix.shape[-2:] != (2, 3):
        raise ValueError(f"matrix must have shape (..., 2, 3), got {tuple(matrix.shape)}")
    _check_dtypes(points=points, matrix=matrix)
    return points @ matrix[..., :2].transpose(-1, -2) + matrix[..., 2].unsqueeze(-2)


def _check_dtypes(**tensors: Tensor) -> None:
    """Raises: TypeError unless all are of one floating-point dtype."""
    dtypes = [tensor.dtype for tensor in tensors.values()]
    if not dtypes[0].is_floating_point or len(set(dtypes)) > 1:
        raise TypeError(f"{' and '.join(tensors)} must have the same floating-point dtype, got {dtypes}")


def invert(matrix: Tensor) -> Tensor:
    """The inverse of an affine transform, (..., 2, 3)."""
    inverse = torch.linalg.inv(matrix[..., :2])
    return torch.cat([inverse, -inverse @ matrix[..., 2:]], -1)


class Window(NamedTuple):
    """A square of an image: its centre from the image's corner, and its side, in pixels."""

    x: float
    y: float
    side: float


def crop_window(image: Tensor, window: Window, size: int) -> Tensor:
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

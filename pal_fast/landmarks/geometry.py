"""Similarity transforms in the plane: fitted to points, applied to points."""

from __future__ import annotations

import torch
from torch import Tensor


def fit_similarity(source: Tensor, target: Tensor) -> Tensor:
    """The rotation, scale and translation that map `source` to `target` in the least-squares sense.

    The closed form of Umeyama (1991) without reflection, in the plane: with centred points as complex numbers
    s and t, the factor is `sum conj(s) t / sum |s|^2`.

    Args: source, target: (..., P, 2), P at least 2 and not all equal.
    Returns: (..., 2, 3), in the dtype of `source`; differentiable.
    """
    source_mean, target_mean = source.mean(-2), target.mean(-2)
    s, t = source - source_mean.unsqueeze(-2), target - target_mean.unsqueeze(-2)
    size = s.square().sum((-2, -1))
    cos = (s * t).sum((-2, -1)) / size
    sin = (s[..., 0] * t[..., 1] - s[..., 1] * t[..., 0]).sum(-1) / size
    matrix = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    shift = target_mean - (matrix @ source_mean.unsqueeze(-1)).squeeze(-1)
    return torch.cat([matrix, shift.unsqueeze(-1)], -1)


def transform_points(points: Tensor, matrix: Tensor) -> Tensor:
    """Args: points (..., K, 2), matrix (..., 2, 3). Returns: (..., K, 2); NaN stays NaN."""
    return points @ matrix[..., :2].transpose(-1, -2) + matrix[..., 2].unsqueeze(-2)


def invert(matrix: Tensor) -> Tensor:
    """The inverse of an affine transform, (..., 2, 3)."""
    inverse = torch.linalg.inv(matrix[..., :2])
    return torch.cat([inverse, -inverse @ matrix[..., 2:]], -1)

"""Other ways to draw landmarks, each judged by its own definition.

mmpose and face-alignment draw on the CPU in NumPy, one patch per landmark; both are reimplemented here from their
definitions (mmpose `generate_gaussian_heatmaps`, face-alignment `draw_gaussian`), so that neither need be installed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .harness import Prepared, UnavailableError, upstream_of


def _overlap(start: int, length: int, extent: int) -> tuple[slice, slice]:
    """The part of [start, start + length) inside [0, extent): as a slice of the image, and of the patch."""
    first = max(0, start)
    last = max(first, min(extent, start + length))
    return slice(first, last), slice(first - start, last - start)


def mmpose_heatmap(points: np.ndarray, size: tuple[int, int], sigma: float) -> np.ndarray:
    """(B, K, 2) -> (B, H, W): a patch truncated at 3 sigma around each rounded landmark, one map each, summed here.

    As in mmpose, the patch is computed for every landmark and combined by a maximum.
    """
    radius = int(3 * sigma)
    maps = np.zeros((*points.shape[:2], *size), dtype=np.float32)
    for b, k in np.ndindex(*points.shape[:2]):
        axis = np.arange(-radius, radius + 1, dtype=np.float32)
        patch = np.exp(-(axis**2 + axis[:, None] ** 2) / (2 * sigma**2))
        x, y = (points[b, k] + 0.5).astype(np.int64).tolist()
        columns, patch_columns = _overlap(x - radius, len(axis), size[1])
        rows, patch_rows = _overlap(y - radius, len(axis), size[0])
        region = maps[b, k, rows, columns]
        np.maximum(region, patch[patch_rows, patch_columns], out=region)
    return maps.sum(1)


def face_alignment_heatmap(points: np.ndarray, size: tuple[int, int], sigma: float) -> np.ndarray:
    """(B, K, 2) -> (B, H, W): a patch of 6 sigma + 1 pixels, added to one map per landmark, clipped at 1, summed here.

    Its Gaussian's standard deviation is a quarter of the patch, and its coordinates count from 1. The package (1.5.0)
    has a single precomputed patch, for sigma 2; here the patch is computed for the given sigma, once per call. The
    package clips the whole map after every landmark; here only the patch's area is clipped. At the left and upper
    borders the package places the patch up to two pixels off; here it is placed exactly.
    """
    length = int(6 * sigma + 1)
    axis = ((np.arange(length) - (length - 1) / 2) / (0.25 * length)) ** 2 / 2
    patch = np.exp(-(axis + axis[:, None])).astype(np.float32)
    maps = np.zeros((*points.shape[:2], *size), dtype=np.float32)
    for b, k in np.ndindex(*points.shape[:2]):
        left, top = (np.floor(points[b, k] - 3 * sigma) - 1).astype(np.int64).tolist()
        columns, patch_columns = _overlap(left, length, size[1])
        rows, patch_rows = _overlap(top, length, size[0])
        region = maps[b, k, rows, columns]
        region += patch[patch_rows, patch_columns]
        np.minimum(region, 1, out=region)
    return maps.sum(1)


def _dense(points: Tensor, size: tuple[int, int], sigma: float, reach: float) -> Tensor:
    """Sum of Gaussians around `points`, truncated outside a square of half side `reach`, in float64."""
    x = torch.arange(size[1], dtype=torch.float64, device=points.device)
    y = torch.arange(size[0], dtype=torch.float64, device=points.device)
    total = points.new_zeros((points.shape[0], *size), dtype=torch.float64)
    for k in range(points.shape[1]):
        dx, dy = x - points[:, k, 0:1].double(), y - points[:, k, 1:2].double()  # (B, W), (B, H)
        gx = torch.where(dx.abs() <= reach, torch.exp(-(dx**2) / (2 * sigma**2)), 0.0)
        gy = torch.where(dy.abs() <= reach, torch.exp(-(dy**2) / (2 * sigma**2)), 0.0)
        total += gy[:, :, None] * gx[:, None, :]
    return total


def mmpose_judge(points: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    return _dense((points + 0.5).trunc(), size, sigma, int(3 * sigma))


def face_alignment_judge(points: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    length = int(6 * sigma + 1)
    corner = (points - 3 * sigma).floor().double() - 1
    return _dense(corner + (length - 1) / 2, size, 0.25 * length, (length - 1) / 2)


def drawn(draw: Any, points: Tensor, size: tuple[int, int], sigma: float) -> Prepared:
    """A NumPy drawing: landmarks are copied from the device, and heatmaps to it."""
    return Prepared(
        lambda: torch.from_numpy(draw(points.detach().cpu().numpy(), size, sigma)).to(points.device, non_blocking=True)
    )


def kornia_heatmap(points: Tensor, size: tuple[int, int], sigma: float) -> Prepared:
    """kornia's renderer, one map per landmark, summed."""
    try:
        from kornia.geometry.subpix import render_gaussian2d
    except ImportError as error:
        raise UnavailableError("kornia is not installed: pip install 'pal_fast[bench]'") from error
    std = torch.full((2,), sigma, device=points.device)
    return Prepared(
        lambda: render_gaussian2d(points, std, size, normalized_coordinates=False).sum(1),
        (points,) if points.requires_grad else (),
    )


def kornia_judge(points: Tensor, size: tuple[int, int], sigma: float) -> list[Tensor]:
    """Each Gaussian divided by its total on the grid, as kornia defines it; in float64, with its gradient."""
    exact = points.detach().double().requires_grad_()
    x = torch.arange(size[1], dtype=torch.float64, device=points.device)
    y = torch.arange(size[0], dtype=torch.float64, device=points.device)
    gx = torch.exp(-((x - exact[..., 0:1]) ** 2) / (2 * sigma**2))  # (B, K, W)
    gy = torch.exp(-((y - exact[..., 1:2]) ** 2) / (2 * sigma**2))  # (B, K, H)
    gx, gy = gx / gx.sum(-1, keepdim=True), gy / gy.sum(-1, keepdim=True)
    heatmap = torch.einsum("bkh,bkw->bhw", gy, gx)
    return [heatmap.detach(), *torch.autograd.grad(heatmap, exact, upstream_of(heatmap))]

"""Landmarks as a torchvision tensor: every geometric transform of `transforms.v2` moves them with their image.

torchvision's own `KeyPoints` kernels count from the outer edge of the first pixel when they resize, rotate or warp, and
from its centre when they flip, so that a point moves by up to half a pixel against its image. `Landmarks` has kernels
that count from the centre of the first pixel throughout, leave points outside of the frame where they are, keep NaN,
and renumber left and right where a flip exchanges them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from pal_fast.landmarks import renumber_mirrored


class Landmarks(tv_tensors.KeyPoints):
    """(K, 2) float32, (x, y) in pixels of an image of `canvas_size` (height, width), integer = pixel centre."""


def _plain(points: Landmarks) -> Tensor:
    return points.as_subclass(Tensor)


def _made(points: Tensor, canvas_size: tuple[int, int]) -> Landmarks:
    return Landmarks._wrap(points, canvas_size=canvas_size, check_dims=False)


@F.register_kernel(F.horizontal_flip, Landmarks)
def _horizontal_flip(points: Landmarks, **_: Any) -> Landmarks:
    turned = renumber_mirrored(_plain(points)).clone()
    turned[..., 0].neg_().add_(points.canvas_size[1] - 1)
    return _made(turned, points.canvas_size)


@F.register_kernel(F.vertical_flip, Landmarks)
def _vertical_flip(points: Landmarks, **_: Any) -> Landmarks:
    turned = renumber_mirrored(_plain(points)).clone()
    turned[..., 1].neg_().add_(points.canvas_size[0] - 1)
    return _made(turned, points.canvas_size)


def _scaled(points: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    ratio = torch.tensor([new[1] / old[1], new[0] / old[0]], dtype=points.dtype)
    return (points + 0.5) * ratio - 0.5


def _shifted(points: Tensor, left: int, top: int) -> Tensor:
    return points - torch.tensor([left, top], dtype=points.dtype)


@F.register_kernel(F.resize, Landmarks)
def _resize(points: Landmarks, size: Any, max_size: int | None = None, **_: Any) -> Landmarks:
    old = points.canvas_size
    # torchvision's rule for the new size, with its own dispatch.
    new = F.resize(tv_tensors.KeyPoints(torch.zeros(1, 2), canvas_size=old), size, max_size=max_size).canvas_size
    return _made(_scaled(_plain(points), old, new), new)


@F.register_kernel(F.crop, Landmarks)
def _crop(points: Landmarks, top: int, left: int, height: int, width: int, **_: Any) -> Landmarks:
    return _made(_shifted(_plain(points), left, top), (height, width))


@F.register_kernel(F.resized_crop, Landmarks)
def _resized_crop(
    points: Landmarks, top: int, left: int, height: int, width: int, size: list[int], **_: Any
) -> Landmarks:
    new = (size[0], size[-1])
    return _made(_scaled(_shifted(_plain(points), left, top), (height, width), new), new)


@F.register_kernel(F.rotate, Landmarks)
def _rotate(
    points: Landmarks, angle: float, expand: bool = False, center: list[float] | None = None, **_: Any
) -> Landmarks:
    """Counterclockwise by `angle` degrees about `center`, (x, y) from the corner, as torchvision turns the image."""
    height, width = new_height, new_width = points.canvas_size
    if expand:
        # The kernel of images decides the new size; that of KeyPoints comes to another one.
        turned = F.rotate(torch.empty(1, height, width), angle, expand=True, center=center)
        new_height, new_width = turned.shape[-2:]
    x, y = (width / 2, height / 2) if center is None else center
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    matrix = torch.tensor([[cos, -sin], [sin, cos]], dtype=points.dtype)  # (x, y) as a row, times the transpose
    about = torch.tensor([x - 0.5, y - 0.5], dtype=points.dtype)
    grown = torch.tensor([(new_width - width) / 2, (new_height - height) / 2], dtype=points.dtype)
    return _made((_plain(points) - about) @ matrix + (about + grown), (new_height, new_width))


def _by_edges(functional: Callable[..., Any]) -> None:
    """Registers torchvision's kernel of KeyPoints, which counts from the edge of the first pixel, with the shift."""

    def moved(points: Landmarks, *args: Any, **kwargs: Any) -> Landmarks:
        edges = tv_tensors.KeyPoints(_plain(points) + 0.5, canvas_size=points.canvas_size)
        result = functional(edges, *args, **kwargs)
        return _made(result.as_subclass(Tensor) - 0.5, result.canvas_size)

    F.register_kernel(functional, Landmarks)(moved)


for _functional in (F.affine, F.perspective, F.pad, F.center_crop):
    _by_edges(_functional)


@F.register_kernel(F.elastic, Landmarks)
def _elastic(points: Landmarks, *args: Any, **kwargs: Any) -> Landmarks:
    raise TypeError("an elastic transform cannot move landmarks exactly: leave ElasticTransform out")

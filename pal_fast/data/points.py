"""Landmarks as a torchvision tensor: every geometric transform of `transforms.v2` moves them with their image.

torchvision's own `KeyPoints` kernels measure from the outer edge of the first pixel when they resize, rotate or warp,
and from its centre when they flip, so a point shifts by up to half a pixel against its image. The kernels of
`Landmarks` always measure from the centre of the first pixel, do not clamp points outside the frame, keep NaN, and
renumber left and right when a flip exchanges them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from pal_fast.landmarks import renumber_mirrored


class Landmarks(tv_tensors.KeyPoints):
    """(K, 2) float32, (x, y) in pixels of an image of `canvas_size` (height, width), integer = pixel centre.

    Attributes:
        checked: the landmarks of the whole data set were checked, so a transform need not check the first ones.
    """

    checked: bool = False


class Motion(NamedTuple):
    """An affine motion of the plane: x -> xx * x + xy * y + right, y -> yx * x + yy * y + down.

    Its entries are plain floats, so that motions are composed before any tensor is touched: a loader moves the
    landmarks of every image.
    """

    xx: float = 1.0
    xy: float = 0.0
    yx: float = 0.0
    yy: float = 1.0
    right: float = 0.0
    down: float = 0.0

    def then(self, other: Motion) -> Motion:
        """This motion, then the other."""
        a, b, c, d, e, f = self
        return Motion(
            other.xx * a + other.xy * c,
            other.xx * b + other.xy * d,
            other.yx * a + other.yy * c,
            other.yx * b + other.yy * d,
            other.xx * e + other.xy * f + other.right,
            other.yx * e + other.yy * f + other.down,
        )

    def apply(self, points: Tensor) -> Tensor:
        """Points (..., 2), integers as float32; a point with a NaN or infinite coordinate becomes NaN."""
        if not points.is_floating_point():
            points = points.float()
        turn = torch.tensor(((self.xx, self.yx), (self.xy, self.yy)), dtype=points.dtype)
        shift = torch.tensor((self.right, self.down), dtype=points.dtype)
        return torch.addmm(shift, points, turn) if points.ndim == 2 else points @ turn + shift


def flip_motion(width: int) -> Motion:
    return Motion(xx=-1, right=width - 1)


def rotation_motion(
    old: tuple[int, int], angle: float, center: Sequence[float] | None = None, new: tuple[int, int] | None = None
) -> Motion:
    """Counterclockwise by `angle` degrees about `center`, (x, y) from the corner, as torchvision rotates the image.

    Args: old, new: (height, width) before and after; the centre of the one maps to the centre of the other.
    """
    height, width = old
    x, y = (width / 2, height / 2) if center is None else center
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    grown = (0.0, 0.0) if new is None else ((new[1] - width) / 2, (new[0] - height) / 2)
    x, y = x - 0.5, y - 0.5
    return Motion(cos, sin, -sin, cos, x - cos * x - sin * y + grown[0], y + sin * x - cos * y + grown[1])


def crop_motion(left: int, top: int, old: tuple[int, int], new: tuple[int, int]) -> Motion:
    """A crop of (height, width) `old` is resized to `new`: (p - corner + 0.5) * new / old - 0.5."""
    x, y = new[1] / old[1], new[0] / old[0]
    return Motion(xx=x, yy=y, right=(0.5 - left) * x - 0.5, down=(0.5 - top) * y - 0.5)


def on_canvas(points: Tensor, canvas_size: tuple[int, int]) -> Landmarks:
    """`Landmarks` that share memory with `points`."""
    return Landmarks._wrap(points, canvas_size=canvas_size, check_dims=False)


def move(points: Landmarks, motion: Motion, canvas_size: tuple[int, int], *, mirrored: bool = False) -> Landmarks:
    """The landmarks under a motion; `mirrored` renumbers left and right."""
    # Even `.dtype` of a tensor subclass dispatches through Python; that of a plain tensor does not.
    plain = points.as_subclass(Tensor)
    return on_canvas(motion.apply(renumber_mirrored(plain) if mirrored else plain), canvas_size)


@F.register_kernel(F.horizontal_flip, Landmarks)
def _horizontal_flip(points: Landmarks, **_: Any) -> Landmarks:
    return move(points, flip_motion(points.canvas_size[1]), points.canvas_size, mirrored=True)


@F.register_kernel(F.vertical_flip, Landmarks)
def _vertical_flip(points: Landmarks, **_: Any) -> Landmarks:
    motion = Motion(yy=-1, down=points.canvas_size[0] - 1)
    return move(points, motion, points.canvas_size, mirrored=True)


@F.register_kernel(F.resize, Landmarks)
def _resize(points: Landmarks, size: Any, max_size: int | None = None, **_: Any) -> Landmarks:
    old = points.canvas_size
    # torchvision's rule for the new size, with its own dispatch
    new = F.resize(tv_tensors.KeyPoints(torch.zeros(1, 2), canvas_size=old), size, max_size=max_size).canvas_size
    return move(points, crop_motion(0, 0, old, new), new)


@F.register_kernel(F.crop, Landmarks)
def _crop(points: Landmarks, top: int, left: int, height: int, width: int, **_: Any) -> Landmarks:
    return move(points, Motion(right=-left, down=-top), (height, width))


@F.register_kernel(F.center_crop, Landmarks)
def _center_crop(points: Landmarks, output_size: int | Sequence[int], **_: Any) -> Landmarks:
    wanted = output_size if isinstance(output_size, Sequence) else (output_size,)
    new = (wanted[0], wanted[-1])
    top, left = (_centred(*sides) for sides in zip(points.canvas_size, new, strict=True))
    return move(points, Motion(right=-left, down=-top), new)


def _centred(old: int, new: int) -> int:
    """Where a centred crop begins, by the rounding of the image kernel: that of KeyPoints arrives at another pixel if
    a crop is larger than its image by 3, 7, 11, ..."""
    return -((new - old) // 2) if new > old else round((old - new) / 2)


@F.register_kernel(F.resized_crop, Landmarks)
def _resized_crop(
    points: Landmarks, top: int, left: int, height: int, width: int, size: list[int], **_: Any
) -> Landmarks:
    new = (size[0], size[-1])
    return move(points, crop_motion(left, top, (height, width), new), new)


@F.register_kernel(F.rotate, Landmarks)
def _rotate(
    points: Landmarks, angle: float, expand: bool = False, center: list[float] | None = None, **_: Any
) -> Landmarks:
    old = new = points.canvas_size
    if expand:
        # The image kernel decides the new size; that of KeyPoints arrives at another one.
        turned = F.rotate(torch.empty(1, *old), angle, expand=True, center=center)
        new = (turned.shape[-2], turned.shape[-1])
    return move(points, rotation_motion(old, angle, center, new), new)


def _by_edges(functional: Callable[..., Any]) -> None:
    """Registers torchvision's KeyPoints kernel, which measures from pixel edges, with a shift by half a pixel."""

    def moved(points: Landmarks, *args: Any, **kwargs: Any) -> Landmarks:
        edges = tv_tensors.KeyPoints(points.as_subclass(Tensor) + 0.5, canvas_size=points.canvas_size)
        result = functional(edges, *args, **kwargs)
        return on_canvas(result.as_subclass(Tensor) - 0.5, result.canvas_size)

    F.register_kernel(functional, Landmarks)(moved)


for _functional in (F.affine, F.perspective, F.pad):
    _by_edges(_functional)


@F.register_kernel(F.elastic, Landmarks)
def _elastic(points: Landmarks, *args: Any, **kwargs: Any) -> Landmarks:
    raise TypeError("an elastic transform cannot move landmarks exactly: leave ElasticTransform out")

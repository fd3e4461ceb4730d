"""A transform's inputs as torchvision's tensors: PIL images, tensors and arrays; landmarks as tensor or array."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from pal_fast.data.points import Landmarks, on_canvas
from pal_fast.image_files import check_depth, rgb
from pal_fast.messages import describe

#: By how much a floating-point image may exceed [0, 1]: bicubic resizing overshoots at edges by less.
_OVERSHOOT: Final = 0.25


def as_image(given: Any) -> tv_tensors.Image:
    """An image (3, H, W), which may share its memory with `given`.

    Args: given: a PIL image of any mode, a tensor (3, H, W), uint8 or floating-point from 0 to 1, or an array
        (H, W, 3) uint8.
    Raises: TypeError, ValueError naming the image.
    """
    if isinstance(given, Image.Image):
        check_depth(given)
        return tv_tensors.Image(torch.from_numpy(rgb(given)).permute(2, 0, 1))
    if isinstance(given, np.ndarray):
        if given.ndim != 3 or given.shape[2] != 3:
            raise ValueError(f"image as an array must have shape (H, W, 3), got {given.shape}")
        if given.dtype != np.uint8:
            raise TypeError(f"image as an array must be uint8, got {given.dtype}")
        return tv_tensors.Image(torch.from_numpy(given).permute(2, 0, 1))
    if not isinstance(given, Tensor):
        raise TypeError("image must be a PIL image, a tensor (3, H, W) or an array (H, W, 3), got " + describe(given))
    plain = given.as_subclass(Tensor)  # even `.dtype` of a tensor subclass dispatches through Python
    if plain.ndim != 3 or plain.shape[0] != 3:
        raise ValueError(f"image as a tensor must have shape (3, H, W), got {tuple(plain.shape)}")
    if plain.dtype != torch.uint8:
        _check_values(plain)
    return given if isinstance(given, tv_tensors.Image) else tv_tensors.Image(plain)


def _check_values(image: Tensor) -> None:
    """Raises TypeError for integers other than uint8, ValueError for floating-point values outside [0, 1]."""
    if not image.is_floating_point():
        raise TypeError(f"image as a tensor must be uint8 (0 to 255) or floating-point (0 to 1), got {image.dtype}")
    low, high = (image.amin().item(), image.amax().item()) if image.numel() else (0.0, 1.0)
    if low < -_OVERSHOOT or high > 1 + _OVERSHOOT:
        raise ValueError(
            f"image as a {image.dtype} tensor must hold values from 0 to 1, got {low:.4g} to {high:.4g}: give uint8, "
            "or divide by 255; the transform itself normalises by mean and std"
        )


def as_landmarks(given: Any, image_size: tuple[int, int]) -> Landmarks:
    """Landmarks (K, 2) of an image of `image_size`; they may share memory with `given`.

    Raises: TypeError, ValueError naming the landmarks.
    """
    if isinstance(given, np.ndarray) and given.dtype.kind in "fiu":
        given = torch.from_numpy(given)
    if not isinstance(given, Tensor):
        hint = "; for a face without landmarks give K rows of NaN" if given is None else ""
        raise TypeError(f"landmarks must be a tensor or an array of shape (K, 2), got {describe(given)}{hint}")
    if given.ndim != 2 or given.shape[1] != 2:
        raise ValueError(f"landmarks must have shape (K, 2), (x, y) in pixels, got {tuple(given.shape)}")
    if not isinstance(given, tv_tensors.KeyPoints):
        return on_canvas(given.as_subclass(Tensor), image_size)
    if tuple(given.canvas_size) != image_size:
        height, width = given.canvas_size
        raise ValueError(
            f"landmarks belong to an image of {height} x {width}, but image is {image_size[0]} x {image_size[1]} "
            "(height x width)"
        )
    return given if isinstance(given, Landmarks) else on_canvas(given.as_subclass(Tensor), image_size)


def as_visible(given: Any, count: int) -> Tensor:
    """Which of `count` landmarks are visible, (K,) bool. Raises: TypeError, ValueError naming `visible`."""
    visible = torch.from_numpy(given) if isinstance(given, np.ndarray) and given.dtype == bool else given
    if not isinstance(visible, Tensor) or visible.dtype != torch.bool:
        raise TypeError(f"visible must be a bool tensor or array of shape ({count},), got {describe(given)}")
    if tuple(visible.shape) != (count,):
        raise ValueError(f"visible must have shape ({count},), like the landmarks, got {tuple(visible.shape)}")
    return visible


def is_placed(name: str, given: Any, image_size: tuple[int, int]) -> bool:
    """Whether an entry of a sample lies in the plane of the image: a mask, boxes, another image of the same size.

    Raises: ValueError if it belongs to an image of another size.
    """
    if not isinstance(given, tv_tensors.TVTensor):
        return False
    size = tuple(getattr(given, "canvas_size", given.shape[-2:]))
    if size != image_size:
        raise ValueError(
            f"{name} ({type(given).__name__}) belongs to an image of {' x '.join(map(str, size))}, but image is "
            f"{image_size[0]} x {image_size[1]} (height x width)"
        )
    return True


def like(made: Any, given: Any) -> Any:
    """`made` as torchvision's tensor if `given` is one, else as a plain tensor."""
    return made if isinstance(given, type(made)) else made.as_subclass(Tensor)

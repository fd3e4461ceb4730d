"""Augmentation and preparation of faces: torchvision v2 transforms that move landmarks with their image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pal_fast import _checks

#: Per channel, of RGB images in [0, 1]: what networks pretrained on ImageNet expect.
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)

Transform = Callable[[dict[str, Any]], dict[str, Any]]
Numbers = tuple[float, float, float]


def train_transform(
    size: int | tuple[int, int],
    *,
    flip: float = 0.5,
    degrees: float = 10.0,
    scale: tuple[float, float] = (0.8, 1.0),
    ratio: tuple[float, float] = (0.9, 1.1),
    colour: float = 0.2,
    erase: float = 0.0,
    mean: Numbers = IMAGENET_MEAN,
    std: Numbers = IMAGENET_STD,
) -> Transform:
    """Random flip, rotation, resized crop and colours, then normalised. Called with a dict of image and landmarks.

    Args:
        size: (height, width) of the result, or one number for both.
        flip: probability of a horizontal flip; left and right of the 68-point scheme are then renumbered.
        degrees: rotation about the centre by an angle within +-degrees.
        scale: the crop's share of the image's area, from and to. (1, 1) resizes the whole image.
        ratio: width to height of the crop, from and to; ignored for scale (1, 1).
        colour: brightness, contrast and saturation change by a factor within 1 +- colour.
        erase: probability that a rectangle is erased (set to the mean).
        mean, std: per channel, of RGB images in [0, 1].

    Returns: a torchvision `v2.Compose`; images come out float32 (3, height, width).
    Raises: ImportError without torchvision.
    """
    v2, torch = _torchvision()
    side = list(_checks.size_pair("size", size))
    steps: list[Any] = []
    if flip:
        steps.append(v2.RandomHorizontalFlip(flip))
    if degrees:
        steps.append(v2.RandomRotation(degrees, interpolation=v2.InterpolationMode.BILINEAR))
    if tuple(scale) == (1.0, 1.0):
        steps.append(v2.Resize(side, antialias=True))
    else:
        steps.append(v2.RandomResizedCrop(side, scale=scale, ratio=ratio, antialias=True))
    if colour:
        steps.append(v2.ColorJitter(brightness=colour, contrast=colour, saturation=colour))
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
    if erase:
        steps.append(v2.RandomErasing(erase))
    return v2.Compose(steps)


def eval_transform(
    size: int | tuple[int, int], *, mean: Numbers = IMAGENET_MEAN, std: Numbers = IMAGENET_STD
) -> Transform:
    """Resized to `size` and normalised, nothing random. Arguments as of `train_transform`."""
    v2, torch = _torchvision()
    return v2.Compose(
        [
            v2.Resize(list(_checks.size_pair("size", size)), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(mean), list(std)),
        ]
    )


def _torchvision() -> tuple[Any, Any]:
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise ImportError("augmentation needs torchvision: pip install 'pal_fast[train]'") from error
    import torch

    return v2, torch

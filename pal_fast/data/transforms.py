"""Augmentation and preprocessing of faces: torchvision v2 transforms that move landmarks with their image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

from pal_fast import _checks
from pal_fast.data.normalised_landmarks import FirstLook
from pal_fast.landmarks import renumber_mirrored
from pal_fast.messages import describe

#: Per channel, of RGB images in [0, 1]: what networks pretrained on ImageNet expect.
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)

Transform = Callable[[dict[str, Any]], dict[str, Any]]
Numbers = tuple[float, float, float]


class FaceTransform:
    """A view of a face, which moves image and landmarks, then transforms that change only the image.

    Called with a dict of `image` and `landmarks`, or with an image alone. An image is a PIL image, in its stored pixels
    (an EXIF orientation is not applied), a tensor (3, H, W), uint8 or floats from 0 to 1, or an array (H, W, 3) uint8;
    landmarks are a tensor or an array (K, 2), (x, y) in pixels of that image, integers at pixel centres. Both are
    returned as tensors, of torchvision's types if they were given as such.

    Of the other entries, `visible` (K,) is renumbered as its landmarks are, and what has a type of torchvision's
    `tv_tensors` (a `Mask`, say), and the image's size, is moved with the image. The rest is passed through.

    The first face is checked: landmarks that look normalised cause a warning, and an error if the second face has
    them, too. Those of a `FaceDataset` are not checked again: its constructor checked them all.

    Attributes:
        view: a `pal_fast.data.random_view.RandomView`.
        paints: torchvision transforms; they never see the landmarks, which saves the time that torchvision needs to
            find out that they do not concern it.
    """

    def __init__(self, view: Any, paints: Sequence[Any]) -> None:
        self.view, self.paints = view, tuple(paints)
        self._first_look = FirstLook()

    def __call__(self, sample: Any) -> Any:
        from pal_fast.data.inputs import as_image, as_landmarks, as_visible, is_placed, like

        if not isinstance(sample, dict):
            return like(self._painted(self.view(as_image(sample))), sample)
        if "image" not in sample or "landmarks" not in sample:
            raise ValueError(
                f"sample must hold 'image' and 'landmarks', got {', '.join(map(repr, sample)) or 'nothing'}; without "
                "landmarks, call the transform with the image alone"
            )
        given = as_image(sample["image"])
        points = as_landmarks(sample["landmarks"], (given.shape[-2], given.shape[-1]))
        if not (points.checked or self._first_look.over):
            self._first_look(points, points.canvas_size)
        params = self.view.make_params([given])
        moved = {
            "image": like(self._painted(self.view.transform(given, params)), sample["image"]),
            "landmarks": like(self.view.move(points, params), sample["landmarks"]),
        }
        if "visible" in sample:
            visible = as_visible(sample["visible"], len(points))
            moved["visible"] = renumber_mirrored(visible, dim=-1) if params["flip"] else visible
        for name, value in sample.items():
            if name not in moved and is_placed(name, value, points.canvas_size):
                moved[name] = self.view.transform(value, params)
        return sample | moved

    def _painted(self, image: Any) -> Any:
        for paint in self.paints:
            image = paint(image)
        return image

    def __repr__(self) -> str:
        return f"FaceTransform({', '.join(map(repr, (self.view, *self.paints)))})"


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
    """Random flip, rotation, resized crop and colour jitter, then normalisation.

    Args:
        size: (height, width) of the result, or one number for both.
        flip: probability of a horizontal flip, which renumbers left and right of the 68-point scheme.
        degrees: rotation about the centre by an angle within ±degrees.
        scale: range of the crop's share of the image's area. (1, 1) resizes the whole image.
        ratio: range of the crop's width over height; ignored for scale (1, 1).
        colour: brightness, contrast and saturation change by a factor within 1 ± colour.
        erase: probability that a rectangle is erased (set to the mean).
        mean, std: per channel, of RGB images in [0, 1].

    Returns: a `FaceTransform`, which documents its inputs; images are returned as float32 (3, height, width).
    Raises: ImportError without torchvision; ValueError, TypeError naming the argument.
    """
    _checks.probability("flip", flip)
    _checks.probability("erase", erase)
    _checks.number_within("degrees", degrees, 0)
    _checks.number_within("colour", colour, 0)
    _check_range("scale", scale, 1)
    _check_range("ratio", ratio, None)
    normalisation, v2 = _normalisation(mean, std), _torchvision()
    from pal_fast.data.random_view import RandomView

    view = RandomView(_checks.size_pair("size", size), flip=flip, degrees=degrees, scale=scale, ratio=ratio)
    paints: list[Any] = []
    if colour:
        by = float(colour)  # torchvision refuses NumPy's numbers
        paints.append(v2.ColorJitter(brightness=by, contrast=by, saturation=by))
    paints += normalisation
    if erase:
        paints.append(v2.RandomErasing(erase))
    return FaceTransform(view, paints)


def _check_range(name: str, given: Any, most: float | None) -> None:
    """Raises: TypeError, ValueError unless `given` is (from, to), positive, ordered and at most `most`."""
    wanted = f"(from, to) with 0 < from <= to{'' if most is None else f' <= {most}'}"
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise TypeError(f"{name} must be {wanted}, got {describe(given)}")
    for number in given:
        _checks.finite_number(name, number)
    if not 0 < given[0] <= given[1] <= (given[1] if most is None else most):
        raise ValueError(f"{name} must be {wanted}, got {tuple(given)}")


def eval_transform(
    size: int | tuple[int, int], *, mean: Numbers = IMAGENET_MEAN, std: Numbers = IMAGENET_STD
) -> Transform:
    """Resizes to `size` and normalises; nothing random. Arguments as for `train_transform`."""
    normalisation = _normalisation(mean, std)
    from pal_fast.data.random_view import RandomView

    whole = RandomView(_checks.size_pair("size", size), flip=0, degrees=0, scale=(1, 1))
    return FaceTransform(whole, normalisation)


def _normalisation(mean: Any, std: Any) -> list[Any]:
    """To float32 in [0, 1], then normalised. Raises: TypeError, ValueError unless both hold a number for R, G and B."""
    _checks.per_channel("mean", mean, 3)
    _checks.per_channel("std", std, 3)
    v2 = _torchvision()
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]


def _torchvision() -> Any:
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise ImportError("augmentation needs torchvision: pip install 'pal_fast[train]'") from error
    return v2

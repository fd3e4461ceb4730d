"""What a network attends to in one photograph, next to the heatmap of the face's landmarks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from pal_fast import _checks, visualize
from pal_fast.capture.model_run import in_mode
from pal_fast.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from pal_fast.functional import landmark_heatmap
from pal_fast.inspection import attribute
from pal_fast.landmarks.geometry import Window, crop_window
from pal_fast.reference import correlation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CROPS: Final = ("face", "whole")
#: Side of the cropped square relative to the longer side of the landmarks' box, to include some hair and neck.
FACE_MARGIN: Final = 1.5


@dataclass(frozen=True)
class Explanation:
    """One photograph as the network receives it, and the network's response.

    Attributes:
        picture: (3, S, S) float32 in [0, 1], before normalisation.
        landmarks: (K, 2), (x, y) in pixels of the picture.
        heatmap, attribution: (h, w), at the layer's resolution.
        probabilities: (classes,).
        correlation: Pearson's, of the attribution with the heatmap; NaN if either is flat.
    """

    picture: Tensor
    landmarks: Tensor
    heatmap: Tensor
    attribution: Tensor
    probabilities: Tensor
    correlation: float


def window_around(landmarks: Tensor, height: int, width: int, crop: str) -> Window:
    """The square of the image that is shown: around the landmarks ("face"), or around the whole image ("whole").

    Raises: ValueError for any other crop, or if there is no landmark to put a square around.
    """
    _checks.choice("crop", crop, CROPS)
    if crop == "whole":
        return Window(width / 2, height / 2, float(max(height, width)))
    known = landmarks[landmarks.isfinite().all(1)]
    if not len(known):
        raise ValueError("landmarks contain no valid point, so there is no face to crop; use crop='whole'")
    low, high = known.amin(0), known.amax(0)
    side = float((high - low).max()) * FACE_MARGIN
    if not side > 1:
        raise ValueError("landmarks all lie on one pixel, so there is no face to crop; use crop='whole'")
    x, y = ((low + high) / 2 + 0.5).tolist()  # windows count from the image's corner
    return Window(x, y, side)


def into_window(landmarks: Tensor, window: Window, size: int) -> Tensor:
    """(K, 2), from pixels of the image to pixels of the window resized to `size`; integer = pixel centre."""
    corner = landmarks.new_tensor([window.x - window.side / 2, window.y - window.side / 2])
    return (landmarks + 0.5 - corner) * (size / window.side) - 0.5


def explain(
    image: Tensor,
    landmarks: Tensor,
    network: nn.Module,
    layer: nn.Module | str,
    *,
    size: int = 224,
    crop: str = "face",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    target: str = "predicted",
    attribution: str = "grad_input",
    sigma: float | None = None,
) -> Explanation:
    """Runs the network in eval mode on one photograph; each module's mode is restored.

    Args:
        image: (3, H, W) uint8.
        landmarks: (K, 2), (x, y) in pixels of the image, integer = pixel centre.
        layer: the layer to attribute, or its name.
        size: side of the network's square input in pixels.
        crop: the part of the image that becomes that square, "face" or "whole". The whole image keeps its aspect ratio
            and gets borders, while `pal_fast.data.eval_transform` resizes both sides to the square: for a non-square
            image, a network trained by `pal-fast train` sees a different picture here.
        mean, std: with which the network's input is normalised; ImageNet's by default.
        target: the logits that are attributed, "predicted" or "sum".
        attribution: see `pal_loss`.
        sigma: of the landmarks' Gaussians, in pixels of the network's input.

    Raises: TypeError, ValueError naming the argument.
    """
    _checks.instance("image", image, Tensor, "a tensor of shape (3, H, W)")
    if image.dim() != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
        raise ValueError(f"image must be (3, H, W) uint8, got {tuple(image.shape)} {image.dtype}")
    _checks.points("landmarks", landmarks, "(K, 2)", 2)
    _checks.module("network", network)
    _checks.whole_number("size", size, 1)
    _checks.choice("crop", crop, CROPS)
    _checks.per_channel("mean", mean, 3)
    _checks.per_channel("std", std, 3)
    window = window_around(landmarks, image.shape[1], image.shape[2], crop)
    picture = crop_window(image, window, size)
    points = into_window(landmarks, window, size)
    shape = (-1, 1, 1)
    normalised = (picture - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    with in_mode(network, training=False):
        maps, logits = attribute(network, layer, normalised[None], attribution=attribution, target=target)
    heatmap = landmark_heatmap(points[None], (maps.shape[1], maps.shape[2]), image_size=size, sigma=sigma)
    aligned, defined = correlation(maps.double(), heatmap.double())
    probabilities = logits[0].float().softmax(0)
    return Explanation(picture, points, heatmap[0], maps[0], probabilities, float(aligned) if defined else math.nan)


def draw(explanation: Explanation, *, title: str, caption: str = "attribution") -> Figure:
    """Image, landmarks, heatmap and attribution, side by side. Args: caption: the title of the attribution."""
    _checks.instance("explanation", explanation, Explanation, "an Explanation")
    e = explanation
    aligned = "undefined (a flat map)" if math.isnan(e.correlation) else f"{e.correlation:.2f}"
    return visualize.panels(
        e.picture,
        {
            "landmarks": None,
            "heatmap of the landmarks": e.heatmap,
            f"{caption}; correlation {aligned}": e.attribution,
        },
        landmarks={"landmarks": e.landmarks},
        title=title,
    )

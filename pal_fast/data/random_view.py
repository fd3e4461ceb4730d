"""Flip, rotation and resized crop in one torchvision transform."""

from __future__ import annotations

from typing import Any

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from pal_fast.data.points import Landmarks, Motion, crop_motion, flip_motion, move, rotation_motion


class RandomView(v2.Transform):
    """`RandomHorizontalFlip`, `RandomRotation` (bilinear) and `RandomResizedCrop` (antialiased), one after the other.

    The same kernels with the same distributions as the three transforms, each of which spends more time on inspecting
    its inputs than the landmarks' arithmetic takes.

    Args:
        size: (height, width) of the result.
        flip: probability of a flip.
        degrees: rotation about the centre by an angle within ±degrees.
        scale, ratio: of the crop, as for `RandomResizedCrop`; scale (1, 1) takes the whole image.
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        flip: float = 0.5,
        degrees: float = 10.0,
        scale: tuple[float, float] = (0.8, 1.0),
        ratio: tuple[float, float] = (0.9, 1.1),
    ) -> None:
        super().__init__()
        self.size, self.flip, self.degrees = list(size), flip, degrees
        self.scale, self.ratio = tuple(scale), tuple(ratio)
        self._crop = None if self.scale == (1.0, 1.0) else v2.RandomResizedCrop(self.size, scale=scale, ratio=ratio)

    def move(self, landmarks: Landmarks, params: dict[str, Any]) -> Landmarks:
        """The same result as `self.transform(landmarks, params)`, with one motion instead of three."""
        size, new = landmarks.canvas_size, (self.size[0], self.size[1])
        motion = flip_motion(size[1]) if params["flip"] else Motion()
        if self.degrees:
            motion = motion.then(rotation_motion(size, params["angle"]))
        crop = params["crop"] or {"left": 0, "top": 0, "height": size[0], "width": size[1]}
        motion = motion.then(crop_motion(crop["left"], crop["top"], (crop["height"], crop["width"]), new))
        return move(landmarks, motion, new, mirrored=params["flip"])

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        flip, angle = torch.rand(2).tolist() if self.flip or self.degrees else (1.0, 0.5)
        crop = {} if self._crop is None else self._crop.make_params(flat_inputs)
        return {"flip": flip < self.flip, "angle": (2 * angle - 1) * self.degrees, "crop": crop}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if params["flip"]:
            inpt = self._call_kernel(F.horizontal_flip, inpt)
        if self.degrees:
            inpt = self._call_kernel(F.rotate, inpt, angle=params["angle"], interpolation=v2.InterpolationMode.BILINEAR)
        if self._crop is None:
            return self._call_kernel(F.resize, inpt, self.size, antialias=True)
        return self._call_kernel(F.resized_crop, inpt, **params["crop"], size=self.size, antialias=True)

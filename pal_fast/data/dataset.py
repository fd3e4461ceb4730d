"""`FaceDataset`: images, labels and landmarks of one split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pal_fast import _checks
from pal_fast.data.normalised_landmarks import check_in_pixels
from pal_fast.landmarks import LandmarkSet
from pal_fast.landmarks.plausible import without_coincident
from pal_fast.messages import describe


class ImageSource(Protocol):
    """Where the images come from."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor:
        """(3, H, W) uint8, RGB."""
        ...


class FaceDataset(Dataset[dict[str, Any]]):
    """Faces with labels and landmarks.

    `dataset[i]` is a dict: `image` (3, H, W), as the transform returns it, or float32 in [0, 1] without a transform;
    `label` int; `landmarks` (K, 2) float32, (x, y) in pixels of that image, integers at pixel centres, NaN for missing
    ones; `index` int, i.

    Attributes:
        classes: the classes' names; a label is an index into them.
        labels: (N,) int64.
        names: N names, the images' paths relative to the data set's root.
        landmarks: (N, K, 2) float32 in pixels of the images as they are read.
        landmark_count: K; 0 where the data set was opened without landmarks.
        transform: called with a dict of `image` (torchvision `tv_tensors.Image`, uint8) and `landmarks`
            (`pal_fast.data.points.Landmarks`, a `tv_tensors.KeyPoints`), returns the same; None for none.

    If all landmarks of an image coincide, they are treated as missing; a warning counts these images.

    Raises: TypeError naming the argument; ValueError for shapes that do not match, and for landmarks that are
        normalised instead of in pixels.
    """

    landmarks: Tensor

    def __init__(
        self,
        images: ImageSource,
        labels: Tensor | Sequence[int],
        classes: Sequence[str],
        *,
        names: Sequence[str] | None = None,
        landmarks: Tensor | np.ndarray[Any, Any] | None = None,
        transform: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        self._take(images, labels, classes, names, landmarks, transform)
        self.landmarks = without_coincident(self.landmarks, self.names, "landmarks")
        check_in_pixels(self.landmarks, self.names, self._size_of, "landmarks")

    @classmethod
    def _of_checked(cls, images: ImageSource, labels: Any, classes: Any, **given: Any) -> FaceDataset:
        """The constructor for landmarks whose values the caller has checked, with a better name for their source."""
        made = cls.__new__(cls)
        made._take(images, labels, classes, **given)
        return made

    def _take(
        self,
        images: ImageSource,
        labels: Tensor | Sequence[int],
        classes: Sequence[str],
        names: Sequence[str] | None,
        landmarks: Tensor | np.ndarray[Any, Any] | None,
        transform: Callable[[dict[str, Any]], dict[str, Any]] | None,
    ) -> None:
        if not (hasattr(images, "__len__") and hasattr(images, "__getitem__")) or getattr(images, "ndim", 1) == 0:
            raise TypeError(f"images must have a length and return an image for each index, got {describe(images)}")
        if transform is not None and not callable(transform):
            raise TypeError(f"transform must be a function of a dict, or None, got {describe(transform)}")
        count = len(images)
        self.images = images
        self.labels = _checks.whole_numbers("labels", labels)
        self.classes = _checks.texts("classes", classes)
        self.names = tuple(map(str, range(count))) if names is None else _checks.texts("names", names, count)
        if landmarks is not None and not isinstance(landmarks, (Tensor, np.ndarray)):
            raise TypeError(
                f"landmarks must be a tensor or an array of shape ({count}, K, 2), got {describe(landmarks)}"
            )
        self.landmarks = (
            torch.zeros(count, 0, 2) if landmarks is None else torch.as_tensor(landmarks, dtype=torch.float32)
        )
        self.transform = transform
        if self.labels.shape != (count,):
            raise ValueError(f"labels must have shape ({count},), one for each image, got {tuple(self.labels.shape)}")
        if count and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise ValueError(f"labels must be from 0 to {len(self.classes) - 1}, got {self.labels.unique().tolist()}")
        if self.landmarks.ndim != 3 or len(self.landmarks) != count or self.landmarks.shape[2] != 2:
            raise ValueError(f"landmarks must have shape ({count}, K, 2), got {tuple(self.landmarks.shape)}")

    def _size_of(self, index: int) -> tuple[int, int]:
        """(height, width) of an image as read, before any transform."""
        height, width = self.images[index].shape[-2:]
        return height, width

    @property
    def landmark_count(self) -> int:
        return self.landmarks.shape[1]

    @property
    def class_counts(self) -> Tensor:
        """(classes,) int64: the number of images of each class."""
        return self.labels.bincount(minlength=len(self.classes))

    def landmark_set(self) -> LandmarkSet:
        """Names and landmarks together, for writing to a file."""
        return LandmarkSet(self.landmarks, self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range: the data set holds {len(self)} images")
        index %= len(self)
        image, points = self.images[index], self.landmarks[index]
        if self.transform is None:
            image = image.float() / 255
        else:
            image, points = _transformed(self.transform, image, points)
        return {"image": image, "label": int(self.labels[index]), "landmarks": points, "index": index}

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {n}" for name, n in zip(self.classes, self.class_counts.tolist(), strict=True))
        return f"FaceDataset({len(self)} images: {counts}; {self.landmark_count} landmarks)"


def _transformed(
    transform: Callable[[dict[str, Any]], dict[str, Any]], image: Tensor, points: Tensor
) -> tuple[Tensor, Tensor]:
    from torchvision import tv_tensors

    from pal_fast.data.points import on_canvas

    # A copy, so that an in-place transform does not change the data set.
    landmarks = on_canvas(points.clone(), (image.shape[-2], image.shape[-1]))
    landmarks.checked = True  # by the data set's constructor
    made = transform({"image": tv_tensors.Image(image), "landmarks": landmarks})
    return made["image"].as_subclass(Tensor), made["landmarks"].as_subclass(Tensor)

"""Data sets of faces with landmarks, and augmentation that moves landmarks with their image.

`open_dataset` opens RAF-DB, AffectNet, FERPlus, a folder of class folders or the drawn faces. No heatmaps are made
here: the loss renders them from the landmarks on the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pal_fast.data.catalogue import DATASETS, open_dataset
from pal_fast.data.dataset import FaceDataset
from pal_fast.data.sampling import class_balanced_sampler
from pal_fast.data.transforms import IMAGENET_MEAN, IMAGENET_STD, eval_transform, train_transform

if TYPE_CHECKING:
    from pal_fast.data.points import Landmarks

__all__ = [
    "DATASETS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "FaceDataset",
    "Landmarks",
    "class_balanced_sampler",
    "eval_transform",
    "open_dataset",
    "train_transform",
]


def __getattr__(name: str) -> Any:
    # Deferred: this name needs torchvision, the package does not.
    if name == "Landmarks":
        try:
            from pal_fast.data.points import Landmarks
        except ImportError as error:
            raise ImportError("Landmarks need torchvision: pip install 'pal_fast[train]'") from error
        return Landmarks
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

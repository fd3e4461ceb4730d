"""Sampling by class."""

from __future__ import annotations

import torch
from torch.utils.data import WeightedRandomSampler

from pal_fast.data.dataset import FaceDataset
from pal_fast.messages import describe


def class_balanced_sampler(dataset: FaceDataset, generator: torch.Generator | None = None) -> WeightedRandomSampler:
    """Draws len(dataset) images with replacement; every class that has images is equally likely.

    Args: dataset: a FaceDataset, or another with its `labels` and `class_counts`.
    Raises: TypeError for one without them; ValueError for an empty one.
    """
    if not (hasattr(dataset, "labels") and hasattr(dataset, "class_counts")):
        raise TypeError(f"dataset must have labels and class_counts, as a FaceDataset has, got {describe(dataset)}")
    if not len(dataset):
        raise ValueError("dataset must hold images to draw from, got none")
    weights = 1.0 / dataset.class_counts.clamp_min(1).double()
    return WeightedRandomSampler(weights[dataset.labels].tolist(), len(dataset), replacement=True, generator=generator)

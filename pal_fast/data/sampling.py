"""Sampling by class."""

from __future__ import annotations

import torch
from torch.utils.data import WeightedRandomSampler

from pal_fast import _checks
from pal_fast.data.dataset import FaceDataset


def class_balanced_sampler(dataset: FaceDataset, generator: torch.Generator | None = None) -> WeightedRandomSampler:
    """Draws len(dataset) images with replacement; every class that has images is equally likely.

    Raises: TypeError, ValueError unless `dataset` is one that holds images.
    """
    _checks.instance("dataset", dataset, FaceDataset, "a FaceDataset")
    if not len(dataset):
        raise ValueError("dataset must hold images to draw from, got none")
    weights = 1.0 / dataset.class_counts.clamp_min(1).double()
    return WeightedRandomSampler(weights[dataset.labels].tolist(), len(dataset), replacement=True, generator=generator)

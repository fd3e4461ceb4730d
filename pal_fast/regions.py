"""Regions of the face: which landmarks of the 68-point scheme take part, and with what weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from pal_fast import _checks
from pal_fast.constants import REGIONS
from pal_fast.messages import describe

#: Number of landmarks in the scheme in which regions are defined.
POINTS: Final = 68


def check_scheme(count: int, landmarks: str = "landmarks") -> None:
    """Raises ValueError, which calls them `landmarks`, unless there are as many as regions are defined on."""
    if count != POINTS:
        raise ValueError(
            f"regions belong to the {POINTS}-point scheme, but {landmarks} hold {count} points: leave regions out, or "
            "give other landmarks"
        )


def region_weights(regions: str | Sequence[str] | Mapping[str, float] | None) -> Tensor | None:
    """(68,) float32: the weight of each landmark of the 68-point scheme; None if no regions are chosen."""
    if regions is None:
        return None
    if isinstance(regions, str):
        regions = [regions]
    if not isinstance(regions, (Mapping, Sequence)):
        raise TypeError(f"regions must be names or a mapping of names to weights, got {describe(regions)}")
    chosen = list(regions.items()) if isinstance(regions, Mapping) else [(name, 1.0) for name in regions]
    if not chosen:
        raise ValueError(f"regions must name at least one of {', '.join(REGIONS)}, got none")
    weights = torch.zeros(POINTS)
    for name, weight in chosen:
        _checks.choice("regions", name, tuple(REGIONS))
        _checks.finite_number(f"the weight of region {name!r}", weight)
        weights[list(REGIONS[name])] = float(weight)
    return weights


class Regions:
    """The weights of the chosen regions, cached on the device of the latest landmarks."""

    def __init__(self, regions: str | Sequence[str] | Mapping[str, float] | None) -> None:
        self._weights = region_weights(regions)

    def weights_for(self, landmarks: Tensor) -> Tensor | None:
        """(68,), or None if no regions are chosen. Raises ValueError for landmarks (B, K, 2) of another scheme."""
        if self._weights is None:
            return None
        _checks.landmarks(landmarks)
        check_scheme(landmarks.shape[1])
        if self._weights.device != landmarks.device:
            self._weights = self._weights.to(landmarks.device)
        return self._weights

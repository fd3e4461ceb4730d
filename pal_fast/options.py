"""The options of a loss, checked once: the choices in DESIGN's formulas as immutable values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pal_fast import _checks
from pal_fast.constants import (
    ATTRIBUTION,
    CHANNELS,
    COMBINE,
    GROUPING,
    GROUPING_OF,
    NORMALIZE,
    REDUCTION,
    SCALE,
    SCORE,
    SIGMA_SHARE,
)


@dataclass(frozen=True)
class AttributionOptions:
    """Which attribution, and which of its channels take part.

    Raises: ValueError or TypeError naming the option.
    """

    attribution: str = "grad_input"
    absolute: bool = True
    channels: str = "mean"
    channel_count: int | float | None = None

    def __post_init__(self) -> None:
        _checks.choice("attribution", self.attribution, ATTRIBUTION)
        if isinstance(self.channels, (int, float)):
            raise TypeError(
                f"channels must be one of {', '.join(map(repr, CHANNELS))}, got {self.channels!r}: how many channels "
                "take part, a number or a share, is channel_count"
            )
        _checks.choice("channels", self.channels, CHANNELS)
        if not isinstance(self.absolute, bool):
            raise TypeError(f"absolute must be True or False, got {self.absolute!r}")
        object.__setattr__(self, "channel_count", _checks.channel_count(self.channel_count))

    def count(self, channels: int) -> int:
        """n, the number of a layer's `channels` that take part: always the first ones."""
        wanted = self.channel_count
        if wanted is None:
            return max(1, channels // 2) if self.channels == "half" else channels
        if isinstance(wanted, float):
            return max(1, math.floor(wanted * channels + 0.5))
        if wanted > channels:
            raise ValueError(f"channel_count={wanted}, but the layer has only {channels} channels")
        return wanted

    @property
    def needs_activation(self) -> bool:
        return self.attribution != "grad"

    @property
    def needs_gradient(self) -> bool:
        return self.attribution != "activation"


@dataclass(frozen=True)
class HeatmapOptions:
    """How landmarks become a heatmap. `sigma` is in image pixels; None is 1/16 of the image's longer side."""

    sigma: float | None = None
    combine: str = "sum"
    normalize: str = "none"
    #: (combine, normalize) as the operators take them.
    codes: tuple[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _checks.choice("combine", self.combine, COMBINE)
        _checks.choice("normalize", self.normalize, NORMALIZE)
        if self.sigma is not None:
            _checks.sigma(self.sigma)
            object.__setattr__(self, "sigma", float(self.sigma))
        object.__setattr__(self, "codes", (COMBINE.index(self.combine), NORMALIZE.index(self.normalize)))

    def sigma_for(self, image_size: tuple[float, float]) -> float:
        return float(self.sigma) if self.sigma is not None else max(image_size) * SIGMA_SHARE


@dataclass(frozen=True)
class LossOptions:
    """A loss in full: attribution, heatmap, score and reduction."""

    attribution: AttributionOptions  # no default: PyTorch 2.11 cannot compile a default that is an object
    heatmap: HeatmapOptions
    score: str = "pearson"
    scale: str = "sum"
    reduction: str = "mean"
    #: (attribution, absolute, grouping) and (score, scale, reduction) as the operators take them.
    codes: tuple[int, bool, int] = field(init=False, repr=False, compare=False)
    score_codes: tuple[int, int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _checks.choice("score", self.score, SCORE)
        _checks.choice("scale", self.scale, SCALE)
        _checks.choice("reduction", self.reduction, REDUCTION)
        a = self.attribution
        codes = ATTRIBUTION.index(a.attribution), a.absolute, GROUPING.index(GROUPING_OF[a.channels])
        object.__setattr__(self, "codes", codes)
        score_codes = SCORE.index(self.score), SCALE.index(self.scale), REDUCTION.index(self.reduction)
        object.__setattr__(self, "score_codes", score_codes)

"""The constants of the specification: the names of every choice, the landmark regions, the numerical tolerances.

Operators take a choice as its index in these tuples, so their order is part of the operators' contract
(`csrc/options.h` and `kernels/` read the same numbers).
"""

from __future__ import annotations

from typing import Final

ATTRIBUTION: Final[tuple[str, ...]] = ("grad_input", "grad", "activation")
CHANNELS: Final[tuple[str, ...]] = ("mean", "half", "all", "each")
GROUPING: Final[tuple[str, ...]] = ("map", "all", "each")
SCORE: Final[tuple[str, ...]] = ("pearson", "cross_correlation")
SCALE: Final[tuple[str, ...]] = ("sum", "mean", "unit")
REDUCTION: Final[tuple[str, ...]] = ("mean", "sum", "none")
COMBINE: Final[tuple[str, ...]] = ("sum", "max")
NORMALIZE: Final[tuple[str, ...]] = ("none", "peak", "sum")
BACKENDS: Final[tuple[str, ...]] = ("cuda", "cpu", "triton", "reference")

#: How a channel strategy groups the attribution for standardisation.
GROUPING_OF: Final[dict[str, str]] = {"mean": "map", "half": "map", "all": "all", "each": "each"}

#: A group is flat, and scores 0 with zero gradient, if its standard deviation is at most this fraction of its
#: root mean square: below that, float32 contains only the rounding errors of a constant map.
FLAT_TOLERANCE: Final = 1e-5

#: The default sigma of a landmark's Gaussian, as a share of the image's longer side.
SIGMA_SHARE: Final = 1 / 16

#: The 68-point scheme (300-W / iBUG): the landmarks of each region of a face.
REGIONS: Final[dict[str, range]] = {
    "jaw": range(0, 17),
    "brows": range(17, 27),
    "nose": range(27, 36),
    "eyes": range(36, 48),
    "mouth": range(48, 68),
}

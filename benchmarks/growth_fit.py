"""Line fits of growing costs: the fixed cost, the cost per element, and where the two are equal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Growth:
    """The line through one peer's medians along one axis."""

    axis: str
    peer: str
    fixed_ms: float
    slope_ms: float
    exponent: float

    @property
    def turning_point(self) -> float:
        """The size at which the work takes as long as calls and launches."""
        return self.fixed_ms / self.slope_ms if self.slope_ms > 0 else math.inf

    def __str__(self) -> str:
        turning = f"{self.turning_point:,.1f}" if math.isfinite(self.turning_point) else "beyond"
        return (
            f"  {self.axis:4}{self.peer:12} fixed {self.fixed_ms:8.3f} ms, {1e3 * self.slope_ms:9.3f} us each, "
            f"calls dominate below {turning}, exponent at the end {self.exponent:.2f}"
        )


def fit(records: Sequence[dict[str, str]]) -> list[Growth]:
    """The growth along every axis of every peer timed at two or more sizes (two give the line through them)."""
    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for record in records:
        if record["mode"] == "both" and record["p50_ms"]:
            point = float(record["size"]), float(record["p50_ms"])
            lines.setdefault((record["axis"], record["peer"]), []).append(point)
    return [_line(axis, peer, sorted(points)) for (axis, peer), points in lines.items() if len(points) > 1]


def _line(axis: str, peer: str, points: list[tuple[float, float]]) -> Growth:
    """Least squares of relative errors, so that small sizes count as much as large ones."""
    xs, ys = np.transpose(points)
    slope, fixed = np.polyfit(xs, ys, 1, w=1 / ys).tolist()
    (x1, y1), (x2, y2) = points[-2:]
    return Growth(axis, peer, max(0.0, fixed), slope, math.log(y2 / y1) / math.log(x2 / x1))

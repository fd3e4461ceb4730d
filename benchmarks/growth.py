"""How the loss's cost grows with batch, channels, cells and landmarks over two decades, and where launches dominate.

    python -m benchmarks.growth            one axis at a time; results in benchmarks/results
    python -m benchmarks.growth --quick    three points an axis, seconds

For each axis a line `fixed + slope * size` is fitted to the medians of forward plus backward. Below `fixed / slope` the
cost is that of calls and launches; above it, of the work. The exponent of growth between the two largest sizes is 1
where the cost is linear.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from . import loss, results_csv
from .command import csv_of, main_of, run_subject
from .harness import BOUNDS, Peer, Subject

AXES = ("B", "C", "HW", "K")
DECADES = (1, 3, 10, 30, 100)


@dataclass(frozen=True)
class GrowthCase(loss.LossCase):
    """A loss of which one size grows."""

    axis: str = "B"

    @property
    def size(self) -> int:
        return {"B": self.batch, "C": self.channels, "HW": self.height * self.width, "K": self.landmarks}[self.axis]

    def columns(self) -> dict[str, object]:
        return {"axis": self.axis, "size": self.size, **super().columns()}

    def __str__(self) -> str:
        return f"{self.axis} = {self.size}: {super().__str__()}"


def cases(device: torch.device, quick: bool) -> Sequence[GrowthCase]:
    steps = (1, 10) if quick else DECADES
    if quick:
        base = GrowthCase(2, 8, 6, 6, 4)
    elif device.type == "cpu":
        base = GrowthCase(4, 128, 14, 14)
    else:
        base = GrowthCase(16, 512, 14, 14)
    first_batch, first_channels, first_side, first_landmarks = (1, 4, 3, 2) if quick else (2, 32, 4, 4)
    found = []
    for step in steps:
        side = round(first_side * math.sqrt(step))
        found += [
            replace(base, axis="B", batch=first_batch * step),
            replace(base, axis="C", channels=first_channels * step),
            replace(base, axis="HW", height=side, width=side),
            replace(base, axis="K", landmarks=first_landmarks * step),
        ]
    return sorted(found, key=lambda case: AXES.index(case.axis))


SUBJECT = Subject(
    name="growth",
    peers=[
        Peer("reference", loss.eager),
        Peer("cpu", loss.ours("cpu")),
        Peer("triton", loss.ours("triton")),
        Peer("cuda", loss.ours("cuda")),
    ],
    cases=cases,
    judge=loss.judge,
    bound=lambda case: BOUNDS[case.dtype],
    traffic=loss.traffic,
    work=loss.work,
    launches=True,
)


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
        """The size at which the work costs as much as calls and launches."""
        return self.fixed_ms / self.slope_ms if self.slope_ms > 0 else math.inf

    def __str__(self) -> str:
        turning = f"{self.turning_point:,.1f}" if math.isfinite(self.turning_point) else "beyond"
        return (
            f"  {self.axis:4}{self.peer:12} fixed {self.fixed_ms:8.3f} ms, {1e3 * self.slope_ms:9.3f} us each, "
            f"calls dominate below {turning}, exponent at the end {self.exponent:.2f}"
        )


def fit(records: Sequence[dict[str, str]]) -> list[Growth]:
    """The growth along every axis of every peer that was timed at three sizes or more (two: the line through them)."""
    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for record in records:
        if record["mode"] == "both" and record["p50_ms"]:
            point = float(record["size"]), float(record["p50_ms"])
            lines.setdefault((record["axis"], record["peer"]), []).append(point)
    return [_line(axis, peer, sorted(points)) for (axis, peer), points in lines.items() if len(points) > 1]


def _line(axis: str, peer: str, points: list[tuple[float, float]]) -> Growth:
    """Least squares of relative errors, so that the small sizes count as much as the large ones."""
    weights = [1 / y**2 for _, y in points]
    total = sum(weights)
    mean_x = sum(w * x for w, (x, _) in zip(weights, points, strict=True)) / total
    mean_y = sum(w * y for w, (_, y) in zip(weights, points, strict=True)) / total
    spread = sum(w * (x - mean_x) ** 2 for w, (x, _) in zip(weights, points, strict=True))
    slope = sum(w * (x - mean_x) * (y - mean_y) for w, (x, y) in zip(weights, points, strict=True)) / spread
    (x1, y1), (x2, y2) = points[-2:]
    return Growth(axis, peer, max(0.0, mean_y - slope * mean_x), slope, math.log(y2 / y1) / math.log(x2 / x1))


def run(options: argparse.Namespace) -> int:
    status = run_subject(SUBJECT, options)
    path = csv_of(SUBJECT, options)
    if path is not None and path.is_file():
        print()
        for growth in fit(results_csv.read(path)):
            print(growth)
    return status


main = main_of(SUBJECT.name, run, __doc__)

if __name__ == "__main__":
    raise SystemExit(main())

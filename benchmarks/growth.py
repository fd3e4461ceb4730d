"""How the loss's cost grows with batch, channels, cells and landmarks over two decades, and where launches dominate.

    python -m benchmarks.growth            one axis at a time; results in benchmarks/results
    python -m benchmarks.growth --quick    three points per axis, seconds

For each axis a line `fixed + slope * size` is fitted to the medians of forward plus backward. Below `fixed / slope` the
cost of calls and launches dominates, above it the work. The exponent of growth between the two largest sizes is 1 if
the cost is linear.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from . import loss, results_csv
from .command import csv_of, main_of, run_subject
from .growth_fit import fit
from .harness import BOUNDS, Peer, Subject

AXES = ("B", "C", "HW", "K")
DECADES = (1, 3, 10, 30, 100)


@dataclass(frozen=True)
class GrowthCase(loss.LossCase):
    """A case of the loss in which one size grows."""

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

"""Whether the performance targets are met on a GPU, from the benchmarks' results there.

    python -m benchmarks.targets [DIRECTORY ...]

Each target is a line: met, not met, or not measured, in how many of its cases, and the range with the worst case. The
figures are those of the CSVs, so rates are shares of the bandwidth measured in the same run. Several directories hold
results of one device; a case measured in several counts as in the last. NOTES.md, "What the targets' ratios can be",
derives how much faster the loss can be where it is memory-bound.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import heatmap, loss, results_csv
from .arguments import DIRECTORY
from .step import command as step

#: The minimum bytes per tensor at which the loss must reach the copy's rate.
LARGE_BYTES = 256e6
LEAST_SHARE = 0.90
TIMES_EAGER, TIMES_COMPILED, TIMES_KORNIA = 10.0, 3.0, 20.0
MOST_STEP, MOST_PEAK, MOST_GRAPHED = 1.10, 1.15, 1.0

Record = dict[str, str]


@dataclass(frozen=True)
class Verdict:
    """A target and its findings: the bounded figure by case, out of `wanted` cases in all."""

    target: str
    bound: float
    at_least: bool
    found: dict[str, float]
    wanted: int
    percent: bool = False

    @property
    def state(self) -> str:
        if not self.found:
            return "not measured"
        if not all(self._holds(value) for value in self.found.values()):
            return "NOT MET"
        return "met" if len(self.found) >= self.wanted else "met so far"

    def _holds(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    def _text(self, value: float) -> str:
        return f"{value:.1%}" if self.percent else f"{value:.3g}"

    def __str__(self) -> str:
        head = f"{self.state:12} {self.target}"
        if not self.found:
            return head
        missed = sum(not self._holds(value) for value in self.found.values())
        worst = (min if self.at_least else max)(self.found, key=lambda case: self.found[case])
        low, high = min(self.found.values()), max(self.found.values())
        return (
            f"{head}: {self._text(low)} to {self._text(high)} in {len(self.found)} of {self.wanted} cases"
            f"{f', {missed} missed it' if missed else ''}, worst {worst}"
        )


def verdicts(*directories: Path, since: float = 0.0) -> list[Verdict]:
    """Every target, from the results in `directories` written after `since` (seconds since the epoch)."""
    losses, heatmaps, steps = (_read(directories, name, since) for name in ("loss", "heatmap", "step"))
    return [*loss_verdicts(losses), *heatmap_verdicts(heatmaps), *step_verdicts(steps)]


def loss_verdicts(records: Sequence[Record]) -> list[Verdict]:
    both = [record for record in records if record["mode"] == "both"]
    cases = loss.gpu_cases()
    kinds = list(dict.fromkeys((case.columns()["dtype"], case.layout) for case in cases))
    found = []
    for dtype, layout in kinds:
        mine = [r for r in both if (r["dtype"], r["layout"]) == (dtype, layout)]
        of_kind = [case for case in cases if (case.columns()["dtype"], case.layout) == (dtype, layout)]
        large = sum(loss.tensor_bytes(case) >= LARGE_BYTES for case in of_kind)
        shares = {_loss_case(r): _share(r) for r in mine if r["peer"] == "cuda" and _large(r) and r["p50_ms"]}
        target = f"loss, 256 MB a tensor, {dtype} {layout}: 90% of the copy"
        found.append(Verdict(target, LEAST_SHARE, True, shares, large, True))
        training = [r for r in mine if int(r["B"]) in loss.TRAINING_BATCHES]
        wanted = sum(case.batch in loss.TRAINING_BATCHES for case in of_kind)
        for peer, times in (("reference", TIMES_EAGER), ("compiled reference", TIMES_COMPILED)):
            faster = _times_faster(training, "cuda", peer, _loss_case)
            target = f"loss, training shapes, {dtype} {layout}: {times:g}x the {peer}"
            found.append(Verdict(target, times, True, faster, wanted))
    return found


def heatmap_verdicts(records: Sequence[Record]) -> list[Verdict]:
    forward = [record for record in records if record["mode"] == "forward"]

    def of(case: heatmap.HeatmapCase) -> list[Record]:
        sizes = (str(case.batch), str(case.landmarks), str(case.side))
        return [r for r in forward if (r["B"], r["K"], r["H"]) == sizes]

    def shares(case: heatmap.HeatmapCase) -> dict[str, float]:
        return {str(case): _share(r) for r in of(case) if r["peer"] == "cuda" and r["p50_ms"]}

    base, large = heatmap.GPU_BASE, heatmap.GPU_LARGE
    faster = _times_faster(of(base), "cuda", "kornia render_gaussian2d", lambda _: str(base))
    return [
        Verdict("heatmap: 90% of the write bandwidth", LEAST_SHARE, True, shares(base), 1, True),
        Verdict("heatmap, larger than L2: 90% of the write bandwidth", LEAST_SHARE, True, shares(large), 1, True),
        Verdict("heatmap: 20x kornia", TIMES_KORNIA, True, faster, 1),
    ]


def step_verdicts(records: Sequence[Record]) -> list[Verdict]:
    timed = [record for record in records if record["ms"]]
    plain_peak = {_step_case(r): float(r["peak_mb"]) for r in timed if r["variant"] == "plain" and r["peak_mb"]}
    found = []
    for variant in ("PALLoss", "prepare_head"):
        mine = {_step_case(r): r for r in timed if r["variant"] == variant}
        over = {case: float(r["ratio"]) / float(r["one_plus_h"]) for case, r in mine.items() if r["ratio"]}
        peaks = {
            case: float(r["peak_mb"]) / plain_peak[case]
            for case, r in mine.items()
            if r["peak_mb"] and plain_peak.get(case)
        }
        wanted = len(step.GPU_CASES)
        found += [
            Verdict(f"step, {variant}: 1.10 x (1 + h) plain steps", MOST_STEP, False, over, wanted),
            Verdict(f"step, {variant}: 1.15 x the plain step's peak memory", MOST_PEAK, False, peaks, wanted),
        ]
    graphed = {
        _step_case(r): float(r["ratio"])
        for r in timed
        if r["variant"] == "graphed" and r["batch"] == "16" and r["ratio"]
    }
    wanted = sum(case.batch == 16 for case in step.GPU_CASES)
    return [*found, Verdict("step, graphed, batch 16: no slower than plain", MOST_GRAPHED, False, graphed, wanted)]


def figures(*directories: Path, since: float = 0.0, most_losses: int = 60, most_steps: int = 36) -> list[str]:
    """A line for each case of the loss (microseconds) and of the step: the figures behind the verdicts."""
    both = [r for r in _read(directories, "loss", since) if r["mode"] == "both" and r["p50_ms"]]
    timed = [r for r in _read(directories, "step", since) if r["ms"]]
    losses, steps = (list(dict.fromkeys(map(name, rows))) for name, rows in ((_loss_case, both), (_step_case, timed)))
    return [
        *(_loss_line(case, {r["peer"]: r for r in both if _loss_case(r) == case}) for case in losses[:most_losses]),
        *(_step_line(case, {r["variant"]: r for r in timed if _step_case(r) == case}) for case in steps[:most_steps]),
    ]


def _loss_line(case: str, rows: dict[str, Record]) -> str:
    short = {"reference": "eager", "compiled reference": "compiled"}
    times = "".join(f" {short.get(peer, peer)} {1e3 * float(r['p50_ms']):.1f}" for peer, r in rows.items())
    if "cuda" not in rows:
        return f"{case}, us:{times}"
    return f"{case}, us:{times}; {_share(rows['cuda']):.0%} of {float(rows['cuda']['machine_gb_s']):.0f} GB/s"


def _step_line(case: str, rows: dict[str, Record]) -> str:
    ratios = "".join(f" {name} {float(r['ratio']):.2f}" for name, r in rows.items() if r["ratio"] and name != "plain")
    plain = f" plain {rows['plain']['ms']} ms" if "plain" in rows else ""
    return f"{case}, 1 + h {next(iter(rows.values()))['one_plus_h']}:{plain}{ratios}"


def _times_faster(records: Sequence[Record], ours: str, peer: str, name: Callable[[Record], str]) -> dict[str, float]:
    medians = {(name(r), r["peer"]): float(r["p50_ms"]) for r in records if r["p50_ms"]}
    cases = dict.fromkeys(case for case, _ in medians)
    return {c: medians[c, peer] / medians[c, ours] for c in cases if (c, peer) in medians and (c, ours) in medians}


def _share(record: Record) -> float:
    """Computed from the measurements; the CSV's column is rounded."""
    return float(record["gb_s"]) / float(record["machine_gb_s"])


def _large(record: Record) -> bool:
    elements = int(record["B"]) * int(record["C"]) * int(record["H"]) * int(record["W"])
    return elements * {"float32": 4, "bfloat16": 2}[record["dtype"]] >= LARGE_BYTES


def _loss_case(record: Record) -> str:
    layout = "NHWC" if record["layout"] == "channels_last" else "NCHW"
    return f"({record['B']}, {record['C']}, {record['H']}, {record['W']}) {record['dtype']} {layout}"


def _step_case(record: Record) -> str:
    return f"{record['model']} {record['layer']} {record['batch']} {record['dtype']}"


def _read(directories: Sequence[Path], name: str, since: float = 0.0) -> list[Record]:
    paths = [directory / f"{name}_cuda.csv" for directory in directories]
    return [r for path in paths if path.is_file() and path.stat().st_mtime >= since for r in results_csv.read(path)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.targets", description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=Path, nargs="*", default=[DIRECTORY])
    directories = parser.parse_args(arguments).directory
    devices = {record["device"] for name in ("loss", "heatmap", "step") for record in _read(directories, name)}
    if len(devices) > 1:
        parser.error(f"the results are of several devices: {', '.join(sorted(devices))}")
    for line in (*figures(*directories), *verdicts(*directories)):
        print(line)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""The study: does PAL help, against what, and where does it not?  `python -m benchmarks.study`

Trains a small network on the drawn faces under every condition of `plan()`, with the seeds that are fixed
here beforehand, and adds each run to benchmarks/results/study.csv as it ends. Runs that are already there are
not repeated, so it can be stopped at any time and called again. Then it writes the table of
docs/study_table.md (`--report` does only that).
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import fields, replace
from pathlib import Path
from typing import Final

from benchmarks.study_runs import Condition, run

RESULTS: Final = Path(__file__).parent / "results" / "study.csv"
DOCS: Final = Path(__file__).parent.parent / "docs"

#: Fixed before the first run.
SEEDS: Final = (0, 1, 2, 3, 4)
WEIGHTS: Final = (0.3, 1.0, 3.0)
MEASURES: Final = ("accuracy", "accuracy_occluded", "alignment")
COLUMNS: Final = (*(field.name for field in fields(Condition)), *MEASURES)

CROSS_ENTROPY: Final = Condition()
PAL: Final = Condition(prior="landmarks")
ALIGNMENT: Final = Condition(prior="landmarks", attribution="activation")


def weighted(condition: Condition, weights: Iterable[float] = WEIGHTS) -> list[Condition]:
    return [replace(condition, weight=weight) for weight in weights]


def parts() -> dict[str, list[Condition]]:
    """The study's questions, in the order in which they are run. Seeds are added by `plan`."""
    best = [CROSS_ENTROPY, replace(PAL, weight=3.0), replace(ALIGNMENT, weight=3.0)]
    return {
        "core": [CROSS_ENTROPY, *weighted(PAL), *weighted(ALIGNMENT)],
        "controls": [
            *weighted(replace(PAL, prior="random"), (1.0, 3.0)),
            *weighted(replace(PAL, prior="shuffled"), (3.0,)),
        ],
        "heavier": [replace(PAL, weight=10.0), replace(ALIGNMENT, weight=10.0)],
        "channels": [c for channels in ("half", "all", "each") for c in weighted(replace(PAL, channels=channels))],
        "attribution": [*weighted(replace(PAL, absolute=False)), *weighted(replace(PAL, attribution="grad"))],
        "pooled": [replace(c, network="pooled") for c in best],
        "images": [replace(c, images=n) for n in (50, 100, 700, 2000) for c in best],
        "noise": [replace(c, noise=noise) for noise in (0.2, 0.4) for c in best],
        "sigma": [replace(PAL, weight=3.0, sigma=sigma) for sigma in (1.5, 6.0)],
        "score": [replace(PAL, score="cross_correlation", scale="mean", weight=weight) for weight in (1.0, 3.0, 10.0)],
    }


def plan(chosen: Iterable[str] | None = None, seeds: Iterable[int] = SEEDS) -> list[Condition]:
    """Every run of the chosen parts (default all), each once, all seeds of a part before the next part."""
    questions = parts()
    names = list(questions) if chosen is None else list(chosen)
    runs = [replace(c, seed=seed) for name in names for seed in seeds for c in questions[name]]
    return list(dict.fromkeys(runs))


def read(path: Path) -> dict[Condition, dict[str, float]]:
    """The measures of every run in the table."""
    if not path.exists():
        return {}
    kinds = {field.name: type(field.default) for field in fields(Condition)}
    rows: dict[Condition, dict[str, float]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            values = {name: row[name] == "True" if kind is bool else kind(row[name]) for name, kind in kinds.items()}
            rows[Condition(**values)] = {name: float(row[name]) for name in MEASURES}
    return rows


def fill(path: Path, runs: list[Condition], processes: int) -> None:
    """Runs what the table lacks, `processes` at a time, and adds each row as it comes."""
    missing = [condition for condition in runs if condition not in read(path)]
    print(f"{len(runs)} runs, {len(missing)} to do, {processes} processes", flush=True)
    if not missing:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    context = multiprocessing.get_context("spawn")
    with path.open("a", newline="") as file, ProcessPoolExecutor(processes, mp_context=context) as pool:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if fresh:
            writer.writeheader()
        pending = [pool.submit(run, condition) for condition in missing]
        for done, future in enumerate(as_completed(pending), 1):
            row = future.result()
            writer.writerow(row)
            file.flush()
            print(f"{done}/{len(missing)} {row}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--parts", nargs="+", choices=list(parts()), help="only these questions")
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the table go")
    parser.add_argument("--report", action="store_true", help="only write the table")
    parser.add_argument("--quick", action="store_true", help="four small runs, to see that it works")
    args = parser.parse_args(arguments)
    runs = plan(args.parts)
    if args.quick:
        few = [CROSS_ENTROPY, replace(PAL, weight=3.0)]
        runs = [replace(c, images=64, seed=seed) for seed in (0, 1) for c in few]
    if not args.report:
        fill(args.results, runs, args.processes)
    from benchmarks.study_report import write

    write(read(args.results), args.docs)


if __name__ == "__main__":
    main()

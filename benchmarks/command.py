"""The command that all subjects share: options, a table on the terminal, the CSV and its pictures."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from . import machine, performance_page, results_csv
from .arguments import DIRECTORY, add_options
from .deadline import Deadline
from .draw import draw
from .harness import Row, Subject, measure
from .lost_device import LOST, LostDeviceError

#: Timed rounds.
ROUNDS = {"cpu": 15, "cuda": 30}


def main_of(name: str, run: Callable[[argparse.Namespace], int], description: str | None) -> Callable[..., int]:
    """Returns the `main(arguments=None)` of a subject; without arguments it uses those of the process."""

    def main(arguments: Sequence[str] | None = None) -> int:
        parser = argparse.ArgumentParser(
            prog=f"python -m benchmarks.{name}",
            description=(description or "").strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_options(parser)
        return run(parser.parse_args(arguments))

    return main


def csv_of(subject: Subject, options: argparse.Namespace) -> Path | None:
    """The file for the rows; None for a quick run without a directory."""
    directory = options.output or (None if options.quick else DIRECTORY)
    return None if directory is None else directory / f"{subject.name}_{device_of(options).type}.csv"


def device_of(options: argparse.Namespace) -> torch.device:
    return torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def run_subject(subject: Subject, options: argparse.Namespace) -> int:
    """Measures every case that fits in the time. Status 1 if a peer failed or was wrong, LOST if the GPU was lost."""
    device = device_of(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    rounds = options.rounds or (3 if options.quick else ROUNDS[device.type])
    path = csv_of(subject, options)
    subject = replace(subject, peers=[peer for peer in subject.peers if peer.name not in options.without])
    environment = machine.environment(device)
    print(f"{subject.name} on {environment['device']}, PyTorch {torch.__version__}, {environment['threads']} threads")
    records: list[dict[str, object]] = []
    cases, measured = subject.cases(device, options.quick), 0
    deadline = Deadline(options.seconds)
    for case in cases:
        if not deadline.allows_another():
            break
        try:
            rows = measure(subject, case, device, rounds, options.quick)
        except LostDeviceError as error:
            print(error)
            return LOST
        measured += 1
        print_rows(case, rows)
        load = machine.load()
        records += [results_csv.record_of(row, {**environment, "load": load}) for row in rows]
        if path is not None:  # after each case, so that an interrupted run keeps its results
            results_csv.write(path, records)
    broken = broken_of(records, "peer")
    print(f"\n{subject.name}: {measured} of {len(cases)} cases in {deadline.taken:.0f} s{broken}", flush=True)
    if path is not None:
        _publish(path, pictures=not options.no_pictures)
    return 1 if broken else 0


def broken_of(records: Sequence[Mapping[str, object]], who: str) -> str:
    """Which peers, by the column `who`, were wrong or failed, and in how many rows; "" if none."""
    broken = Counter(str(r[who]) for r in records if str(r["note"]).startswith(("wrong", "failed")))
    return "".join(f"; {name} wrong or failed in {count} rows" for name, count in broken.items())


def _publish(path: Path, pictures: bool) -> None:
    """Draws the CSV's pictures, and updates the page's tables if it is the source tree's own CSV."""
    if pictures:
        for picture in draw(path):
            print(f"wrote {picture}")
    if path.parent == performance_page.RESULTS:
        performance_page.main()


def print_rows(case: object, rows: Sequence[Row]) -> None:
    rate = next((row.machine_rate for row in rows if row.machine_rate), None)
    yardstick = next((row.yardstick for row in rows if row.yardstick), "")
    print(f"\n{case}" + ("" if rate is None else f"    (share of the {yardstick}'s {rate / 1e9:.1f} GB/s)"))
    print(f"  {'':28}{'mode':10}{'p20 ms':>9}{'p50':>9}{'p80':>9}{'faster':>8}{'GB/s':>8}{'share':>8}{'peak MB':>9}")
    shown = ""
    for row in rows:
        name = row.peer if row.peer != shown else ""
        if row.milliseconds is None:
            if name:
                print(f"  {name:28}{row.note}")
            shown = row.peer
            continue
        p20, p50, p80 = row.milliseconds
        gb_s = "" if row.rate is None else f"{row.rate / 1e9:.1f}"
        share = "" if row.share is None else f"{row.share:.0%}"
        peak = "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.1f}"
        print(
            f"  {name:28}{row.mode:10}{p20:9.3f}{p50:9.3f}{p80:9.3f}{row.ratio or 0:7.1f}x{gb_s:>8}{share:>8}{peak:>9}"
            f"  {row.note}"
        )
        shown = row.peer

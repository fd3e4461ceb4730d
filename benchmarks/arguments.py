"""What the benchmarks' command takes, without importing PyTorch: `pal-fast` reads it to print its help."""

from __future__ import annotations

import argparse
from pathlib import Path

#: The subjects that share one harness, in the order in which they run.
SUBJECTS = ("loss", "heatmap", "attribution", "growth")

_HERE = Path(__file__).resolve().parent
#: Whether the benchmarks lie in a source tree, or were installed as `pal_fast.benchmarks`.
IN_TREE = (_HERE.parent / "pyproject.toml").is_file()
#: In a source tree the results lie beside the benchmarks; installed, where the command is run.
DIRECTORY = _HERE / "results" if IN_TREE else Path("pal_fast_benchmarks")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="small cases, few rounds; keeps nothing without --output")
    parser.add_argument("--device", help="cpu or cuda (default: a GPU if there is one)")
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU (default all)")
    parser.add_argument("--rounds", type=int, help="rounds that count (default 15 on a CPU, 30 on a GPU; quick 3)")
    parser.add_argument("--seconds", type=float, help="begin no case that would end later (default: every case)")
    parser.add_argument("--without", nargs="+", metavar="PEER", default=[], help="peers that are left out")
    parser.add_argument("--no-pictures", action="store_true", help="the CSV alone; benchmarks.draw makes them from it")
    parser.add_argument(
        "--output", type=Path, help=f"directory for CSV and pictures (default {'/'.join(DIRECTORY.parts[-2:])})"
    )

"""The options of the benchmarks' command, defined without importing PyTorch, since `pal-fast --help` reads them."""

from __future__ import annotations

import argparse
from pathlib import Path

#: The subjects that share the harness, in the order in which they run.
SUBJECTS = ("loss", "heatmap", "attribution", "growth")

_HERE = Path(__file__).resolve().parent
#: Whether the benchmarks are in a source tree, or installed as `pal_fast.benchmarks`.
IN_TREE = (_HERE.parent / "pyproject.toml").is_file()
#: In a source tree the results are stored with the benchmarks; when installed, in the working directory.
DIRECTORY = _HERE / "results" if IN_TREE else Path("pal_fast_benchmarks")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="small cases, few rounds; stores nothing without --output")
    parser.add_argument("--device", help="cpu or cuda (default: a GPU if there is one)")
    parser.add_argument("--threads", type=int, help="PyTorch's threads on the CPU (default all)")
    parser.add_argument("--rounds", type=int, help="timed rounds (default 15 on a CPU, 30 on a GPU; quick 3)")
    parser.add_argument("--seconds", type=float, help="start no case that would end later (default: every case)")
    parser.add_argument("--without", nargs="+", metavar="PEER", default=[], help="peers to leave out")
    parser.add_argument(
        "--no-pictures", action="store_true", help="write only the CSV; benchmarks.draw makes pictures from it"
    )
    default = "benchmarks/results, and docs/images for the pictures" if IN_TREE else DIRECTORY
    parser.add_argument("-o", "--output", type=Path, help=f"directory for the CSVs and pictures (default {default})")

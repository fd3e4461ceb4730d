"""`pal-fast bench`: the kernels against their peers, in one run on this machine."""

from __future__ import annotations

import argparse
import importlib

NAME = "bench"
HELP = "check the loss, heatmap and attribution, then time them against their peers; --quick takes seconds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    importlib.import_module("pal_fast.benchmarks.__main__").add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    status: int = importlib.import_module("pal_fast.benchmarks.__main__").run(args)
    return status

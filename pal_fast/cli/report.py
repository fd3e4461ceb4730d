"""`pal-fast report`: one page about one or more runs."""

from __future__ import annotations

import argparse

from pal_fast.cli import check_output

NAME = "report"
HELP = "write one self-contained HTML page about one or more runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders of pal-fast train; several are compared")
    parser.add_argument("-o", "--output", metavar="FILE", help="(default: report.html in the first folder)")


def run(args: argparse.Namespace) -> int:
    from pal_fast.report import write_report

    if args.output:
        check_output(args.output, ".html", ".htm")
    path = write_report(args.runs, args.output)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0

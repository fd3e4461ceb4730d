"""Runs all subjects that share the harness, or the named ones, one after another.

    python -m benchmarks [loss] [heatmap] [attribution] [growth] [--quick]

`pal-fast bench` is the same. The other benchmarks have commands of their own: `step`, `overhead`, `study`, `registers`,
`gpu_check`.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

from .arguments import IN_TREE, SUBJECTS, add_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "subject", nargs="*", metavar="SUBJECT", help=f"one or more of {', '.join(SUBJECTS)} (default all)"
    )
    add_options(parser)


def run(options: argparse.Namespace) -> int:
    """Status 1 if any peer computed something wrong.

    Raises: ValueError for an unknown subject.
    """
    unknown = [name for name in options.subject if name not in SUBJECTS]
    if unknown:
        raise ValueError(f"unknown subject {unknown[0]!r}; must be one of {', '.join(SUBJECTS)}")
    status = 0
    for name in dict.fromkeys(options.subject or SUBJECTS):
        status |= importlib.import_module(f"{__package__}.{name}").run(options)
        print()
    if IN_TREE and not options.quick and not options.output:
        print("`python -m benchmarks.performance_page` updates docs/performance.md from these results")
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    raise SystemExit(main())

"""`pal-fast train`: the paper's experiment, from the images to the final weights."""

from __future__ import annotations

import argparse

NAME = "train"
HELP = "train a network with the loss, or without it as a baseline; the same command resumes a run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from pal_fast.training.arguments import add_options

    parser.add_argument(
        "-o", "--output", metavar="DIR", help="the run's folder (default: runs/, named after the options)"
    )
    add_options(parser)


def run(args: argparse.Namespace) -> int:
    from pal_fast.training.arguments import config_from, default_name
    from pal_fast.training.machine import is_main
    from pal_fast.training.trainer import train

    config = config_from(args).resolved()
    output = args.output or f"runs/{default_name(config)}"
    result = train(config, output, say=lambda line: print(line, flush=True))
    if is_main():
        print(
            f"accuracy {100 * result['accuracy']:.2f} %, balanced {100 * result['balanced_accuracy']:.2f} %; {output}"
        )
    return 0

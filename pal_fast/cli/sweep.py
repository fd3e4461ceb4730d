"""`pal-fast sweep`: the paper's ablation, with several seeds, and its table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from pal_fast.cli import shard_of

NAME = "sweep"
HELP = "train every combination of attribution, channels, layer and weight with several seeds, and tabulate the results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from pal_fast.constants import ATTRIBUTION, CHANNELS
    from pal_fast.training.arguments import add_options
    from pal_fast.training.sweep_plan import VARIED, Plan

    default = Plan()
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="the sweep's folder; run again to resume")
    varied = parser.add_argument_group(
        "what is varied", "every combination is trained with every seed, and the baseline with every seed"
    )

    def add(name: str, values: Sequence[object], **kind: Any) -> None:
        text = " ".join(map(str, values)) or "the network's own"
        varied.add_argument(name, nargs="+", default=values, help=f"(default: {text})", **kind)

    add("--attribution", default.attributions, choices=ATTRIBUTION)
    add("--channels", default.channels, choices=CHANNELS)
    add("--layer", default.layers, metavar="LAYER")
    add("--weight", default.weights, type=float, metavar="X")
    add("--seeds", default.seeds, type=int, metavar="N")
    parser.add_argument("--shard", metavar="i/n", default="1/1", help="run only every n-th run, from the i-th on")
    add_options(parser, leave_out=VARIED)


def run(args: argparse.Namespace) -> int:
    from pal_fast.training.arguments import config_from
    from pal_fast.training.machine import is_main
    from pal_fast.training.sweep_plan import Plan
    from pal_fast.training.sweeping import sweep

    plan = Plan(args.attribution, args.channels, args.layer, args.weight, args.seeds)
    swept = sweep(
        config_from(args), plan, args.output, shard=shard_of(args.shard), say=lambda line: print(line, flush=True)
    )
    if is_main():
        print(swept.table, end="")
    return 1 if swept.failed else 0

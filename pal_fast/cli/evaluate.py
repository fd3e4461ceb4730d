"""`pal-fast evaluate`: the accuracy of a trained network on a split. It needs no landmarks."""

from __future__ import annotations

import argparse

from pal_fast.cli import check_output, count

NAME = "evaluate"
HELP = "print the accuracy, balanced accuracy and confusion of a trained network; needs no landmarks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trained", metavar="RUN", help="a run's folder, its model.pt or checkpoint.pt")
    parser.add_argument("--data", help="another data set with the same classes (default: the one trained on)")
    parser.add_argument("--root", metavar="DIR", help="its folder (default: the one trained on)")
    parser.add_argument("--classes", type=count, metavar="N", help="its first N classes, where it offers a choice")
    parser.add_argument("--split", default="test", help="train or test (default)")
    parser.add_argument(
        "--alignment", action="store_true", help="also measure the alignment, with the data set's own landmarks"
    )
    parser.add_argument("--landmarks", metavar="FILE", help="landmarks to use instead; implies --alignment")
    parser.add_argument("--format", help="format of the landmarks, if the file does not show it")
    parser.add_argument("--limit", type=count, metavar="N", help="use only N images, for a trial run")
    parser.add_argument("--batch", type=count, default=64, metavar="N", help="images at a time (default 64)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="loading processes (default 2)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to run (default auto)")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), help="mixed precision (default: as in training)")
    parser.add_argument("-o", "--output", metavar="FILE", help="also write the figures to this .json file")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from pal_fast.training.machine import is_main
    from pal_fast.training.run_folder import write_json
    from pal_fast.training.trained import evaluate, table

    if args.output:
        check_output(args.output, ".json")
    evaluation = evaluate(
        args.trained,
        data=args.data,
        root=args.root,
        classes=args.classes,
        split=args.split,
        alignment=args.alignment,
        landmarks=args.landmarks,
        format=args.format,
        limit=args.limit,
        batch=args.batch,
        workers=args.workers,
        device=args.device,
        precision=args.precision,
    )
    if is_main():
        print(table(evaluation))
        if args.output:
            write_json(Path(args.output), evaluation.to_mapping())
    return 0

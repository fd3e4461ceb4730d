"""`pal-fast export`: the trained network alone, for use without pal_fast."""

from __future__ import annotations

import argparse
from pathlib import Path

from pal_fast.cli import check_output

NAME = "export"
HELP = "write a trained network, without the loss, as a torch.export program or as ONNX"


#: File extensions by format.
ENDINGS = {"torch": ".pt2", "onnx": ".onnx"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trained", metavar="RUN", help="a run's folder, its model.pt or checkpoint.pt")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="MODEL.pt2 or MODEL.onnx")
    parser.add_argument("--format", choices=("torch", "onnx"), help="(default: by FILE's extension)")


def run(args: argparse.Namespace) -> int:
    from pal_fast.training.exporting import export

    check_output(args.output, *([ENDINGS[args.format]] if args.format else ENDINGS.values()))
    kind = args.format or next(kind for kind, ending in ENDINGS.items() if ending == Path(args.output).suffix.lower())
    said = export(args.trained, args.output, format=kind)
    size = said["size"]
    mean, std = (", ".join(f"{value:g}" for value in said[name]) for name in ("mean", "std"))
    print(f"{args.output}: {said['model']}, images (B, 3, {size}, {size}) to logits of {len(said['classes'])} classes")
    print(f"input: RGB images in [0, 1], already normalised per channel: (image - [{mean}]) / [{std}]")
    print(f"logits compared with the original: largest relative difference {said['difference']:.1e}")
    return 0

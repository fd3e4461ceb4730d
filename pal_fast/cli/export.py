"""`pal-fast export`: the trained network alone, for use without pal_fast."""

from __future__ import annotations

import argparse

NAME = "export"
HELP = "write a trained network as a torch.export program or as ONNX, with nothing of the loss in it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trained", metavar="RUN", help="a run's folder, its model.pt or checkpoint.pt")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="such as model.pt2 or model.onnx")
    parser.add_argument("--format", choices=("torch", "onnx"), help="(default: onnx for .onnx, else torch)")


def run(args: argparse.Namespace) -> int:
    from pal_fast.training.exporting import export

    kind = args.format or ("onnx" if args.output.endswith(".onnx") else "torch")
    said = export(args.trained, args.output, format=kind)
    size = said["size"]
    print(f"{args.output}: {said['model']}, images (B, 3, {size}, {size}) to logits of {len(said['classes'])} classes")
    print(f"logits compared with the original: largest relative difference {said['difference']:.1e}")
    return 0

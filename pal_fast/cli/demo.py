"""`pal-fast demo`: train a small network on drawn faces with and without PAL, print both accuracies, draw both."""

from __future__ import annotations

import argparse
from pathlib import Path

from pal_fast.cli import check_output

NAME = "demo"
HELP = "train a small network with and without PAL on drawn faces (no download), and show where both look"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("pal_fast_demo.png"), help="the picture (default: %(default)s)"
    )
    parser.add_argument("--faces", type=int, default=None, metavar="N", help="training faces (default: 350)")
    parser.add_argument(
        "--epochs", type=int, default=None, metavar="N", help="training epochs (default: 20; fewer show less)"
    )


def run(args: argparse.Namespace) -> int:
    import torch
    from tqdm import tqdm

    from pal_fast import demo, dispatch
    from pal_fast.visualize.figures import check_suffix

    check_suffix(args.output)
    check_output(args.output, makes_folder=True)
    faces = demo.TRAINING_FACES if args.faces is None else args.faces
    epochs = demo.EPOCHS if args.epochs is None else args.epochs
    if faces < 2 or epochs < 1:
        raise ValueError(f"--faces must be at least 2 and --epochs at least 1, got {faces} and {epochs}")
    options = ", ".join(f"{name}={value!r}" for name, value in demo.PAL_OPTIONS.items())
    seeds = ", ".join(map(str, demo.SEEDS))
    backend = dispatch.choose(None, torch.device("cpu"))
    print(
        f"{faces} drawn faces of 7 expressions. A badge in the background has the colour of the label in "
        f"{demo.CUE_AGREEMENT:.0%}\nof the training faces, and any colour in the {demo.TEST_FACES} test faces. "
        "A network of four convolutions\nlearns with cross-entropy alone, and with "
        f"PALLoss(model, {demo.LAYER!r}, {options}):\n{epochs} {'epoch' if epochs == 1 else 'epochs'}, seeds {seeds}, "
        f"one CPU thread, backend {backend!r}."
    )
    with tqdm(total=demo.steps(len(demo.SEEDS), faces, epochs), unit="step", leave=False) as bar:

        def advance(method: str, seed: int) -> None:
            bar.set_description(f"seed {seed}, {method}", refresh=False)
            bar.update()

        outcomes = demo.run(faces=faces, test=demo.TEST_FACES, epochs=epochs, after_step=advance)
    print(f"\n{demo.table(outcomes)}\n")
    print(
        f"Means over the {len(demo.SEEDS)} seeds. Chance level for following the badge is 14.3 %. The correlation is "
        "that of the\nattribution of the predicted expression with the heatmap of the landmarks."
    )
    print(f"Picture: {demo.save(outcomes, args.output)}")
    return 0

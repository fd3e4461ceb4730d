"""`pal-fast explain IMAGE --landmarks FILE`: where a network looks in a photograph, as a picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pal_fast.cli import check_output, count

if TYPE_CHECKING:
    from pal_fast.landmarks import LandmarkSet
    from pal_fast.training.initial_weights import Beginning

NAME = "explain"
HELP = "draw what a torchvision or timm network attends to in a photograph, beside its landmarks' heatmap"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path)
    parser.add_argument(
        "--landmarks",
        type=Path,
        required=True,
        help="a file with the image's landmarks (.pts, .npz, ...), or with those of several images, looked up by "
        "name; in pixels of the image as it is stored (an EXIF orientation is not applied)",
    )
    parser.add_argument("--format", default=None, help="format of the landmarks, if the file does not show it")
    parser.add_argument("--model", default="resnet50", help="a name in torchvision or timm (default: %(default)s)")
    parser.add_argument("--layer", default="layer3", help="the layer to look at (default: %(default)s)")
    parser.add_argument(
        "--weights",
        default="auto",
        metavar="auto|fetch|random|FILE",
        help="auto (default): the library's own if they are on this machine; fetch: downloaded if needed; random; or "
        "a checkpoint",
    )
    parser.add_argument(
        "--classes", type=count, default=1000, help="number of logits of the network (default: %(default)s)"
    )
    parser.add_argument(
        "--crop",
        choices=("face", "whole"),
        default="face",
        help="what the network sees: a square around the face, or the whole image padded to a square; pal-fast train "
        "resizes both sides to the square instead",
    )
    parser.add_argument(
        "--size", type=count, default=None, help="side of the network's input in pixels (default: its own)"
    )
    parser.add_argument(
        "--target",
        choices=("predicted", "sum"),
        default="predicted",
        help="the logits to attribute; an activation depends on none",
    )
    parser.add_argument("--attribution", choices=("grad_input", "grad", "activation"), default="grad_input")
    parser.add_argument(
        "--sigma", type=float, default=None, help="of the heatmap's Gaussians, in pixels of the network's input"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("pal_fast_explain.png"), help="the picture (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    import torch

    from pal_fast import explain, visualize
    from pal_fast.capture.model_run import running
    from pal_fast.image_files import read_image
    from pal_fast.landmarks import read_landmark_set
    from pal_fast.visualize.figures import check_suffix

    check_suffix(args.output)
    check_output(args.output, makes_folder=True)
    image = read_image(args.image)
    marks = read_landmark_set(args.landmarks, args.format, image_size=(image.shape[1], image.shape[2]))
    landmarks = marks.points[row_of(args.image, marks, args.landmarks)]
    size, mean, std = expectations(args.model)
    size = size if args.size is None else args.size
    beginning = build(args.model, args.classes, size, args.weights)
    with running(args.model, size, "--size"), torch.no_grad():
        beginning.network.eval()(torch.zeros(1, 3, size, size))
    explanation = explain.explain(
        image,
        landmarks,
        beginning.network,
        args.layer,
        size=size,
        crop=args.crop,
        mean=mean,
        std=std,
        target=args.target,
        attribution=args.attribution,
        sigma=args.sigma,
    )
    state = untrained(beginning)
    probability, best = explanation.probabilities.max(0)
    logits = f"logit {int(best)}" if args.target == "predicted" else "the sum of the logits"
    what = "activation" if args.attribution == "activation" else f"attribution of {logits}"
    inside = ((explanation.landmarks >= -0.5) & (explanation.landmarks < size - 0.5)).all(1).sum()
    cells = " x ".join(map(str, explanation.attribution.shape))
    print(
        f"image        {args.image}, {image.shape[2]} x {image.shape[1]}; "
        f"the network sees {size} x {size} ({args.crop})"
    )
    print(f"landmarks    {args.landmarks}, {len(landmarks)} points, {int(inside)} of them in what the network sees")
    print(f"network      {args.model}, layer {args.layer!r} with {cells} cells")
    print(f"weights      {beginning}")
    if state:
        print(f"             {state.upper()}: random weights show the architecture, not anything learnt")
    print(f"prediction   logit {int(best)}, probability {float(probability):.3f}")
    print(f"correlation  {explanation.correlation:.3f}, of the {what} with the landmarks' heatmap")
    weights = "random weights: UNTRAINED" if state == "untrained" else beginning.source
    weights += " (PARTLY UNTRAINED)" if state == "partly untrained" else ""
    figure = explain.draw(explanation, title=f"{args.model}, {args.layer}\n{weights}", caption=what)
    print(f"picture      {visualize.save(figure, args.output)}")
    return 0


def row_of(image: Path, landmarks: LandmarkSet, source: Path) -> int:
    """The row of the image's landmarks: the only one, whatever its name, else the one that the image's path names.

    Raises: ValueError if none or several match.
    """
    from pal_fast.messages import first_few

    row = 0 if len(landmarks) == 1 else int(landmarks.find([image.absolute().as_posix()])[0])
    if row < 0:
        raise ValueError(
            f"landmarks: {source} holds landmarks of {len(landmarks)} images ({first_few(landmarks.names, 3)}), and "
            f"their names do not tell which belong to {image}"
        )
    return row


def build(name: str, classes: int, size: int, weights: str) -> Beginning:
    """The network. Random weights come from a fixed seed, so that every call draws the same picture."""
    import torch

    from pal_fast.training.initial_weights import begin

    choices = {"auto": "auto", "fetch": "yes", "random": "no"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if weights in choices:
            return begin(name, classes, size, pretrained=choices[weights])
        beginning = begin(name, classes, size, weights=weights)
    if beginning.loaded is not None and beginning.loaded.misshapen:
        raise ValueError(f"weights: {beginning}; --classes {classes} must be the checkpoint's number of classes")
    return beginning


def untrained(beginning: Beginning) -> str:
    """How much of the network is untrained: "", "partly untrained" or "untrained"."""
    loaded = beginning.loaded
    if loaded is None:
        return "untrained"
    return "partly untrained" if loaded.misshapen or loaded.missing else ""


def expectations(name: str) -> tuple[int, Any, Any]:
    """Side, mean and standard deviation of the input that the library's own weights were trained on."""
    from pal_fast.training.networks import SMALL, find_library

    if name == SMALL:
        raise ValueError(f"model {name!r} is for drawn faces; name a network of torchvision or timm")
    from pal_fast.data.transforms import IMAGENET_MEAN, IMAGENET_STD

    library, plain = find_library(name)
    if library == "timm":
        import timm

        config = timm.get_pretrained_cfg(plain)
        if config is None:
            return 224, IMAGENET_MEAN, IMAGENET_STD
        return int(config.input_size[-1]), tuple(config.mean), tuple(config.std)
    import torchvision

    preset = torchvision.models.get_model_weights(plain).DEFAULT.transforms()
    return int(preset.crop_size[0]), tuple(preset.mean), tuple(preset.std)

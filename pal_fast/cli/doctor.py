"""`pal-fast doctor MODEL`: which layers can be attributed, and whether the chosen one will work."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import sys
from typing import TYPE_CHECKING, Any

from pal_fast.cli import count

if TYPE_CHECKING:
    from torch import nn

NAME = "doctor"
HELP = "list a model's candidate layers, or check the chosen one, before spending GPU time on it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        help="a name that pal-fast train accepts, or PACKAGE.MODULE:FACTORY, in the working directory or installed",
    )
    parser.add_argument("--layer", action="append", help="the layer to check; repeat it for several")
    parser.add_argument("--size", type=count, default=224, help="side of the images in pixels (default 224)")
    parser.add_argument("--batch", type=count, default=2, help="images in the trial batch (default 2)")
    parser.add_argument(
        "--classes", type=count, default=7, help="number of classes of a model given by its name (default 7)"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")


def run(args: argparse.Namespace) -> int:
    import torch

    from pal_fast import PALLoss
    from pal_fast.capture.candidates import candidates
    from pal_fast.capture.model_run import running
    from pal_fast.training.networks import make_twice_differentiable

    model = build(args.model, args.classes, args.size).to(args.device).train()
    replaced = make_twice_differentiable(model, args.model)
    if replaced:
        print(
            f"{replaced}; pal-fast train does it too; in a loop of your own call pal_fast.nn.replace_hardsigmoid(model)"
        )
    images = torch.randn(args.batch, 3, args.size, args.size, device=args.device)
    if not args.layer:
        with running(args.model, args.size, "--size"):
            found = candidates(model, images)
        side = f"{args.size} x {args.size}"
        print(f"{args.model}: layers with a map, in the order in which they run (images {side})")
        print(f"  {'layer':<32} {'B, C, H, W':<20} {'layout':<20} time above")
        reached = [candidate for candidate in found if candidate.reached]
        for candidate in reached or found:
            print(f"  {candidate}")
        if not reached and found:
            print(
                "PROBLEM: the gradient of the logits is exactly zero in all of these maps, as it is while the "
                "classifier's weights are all zero (torchvision's ViT starts like that): initialise them"
            )
        elif len(reached) < len(found):
            names = ", ".join(candidate.name for candidate in found if not candidate.reached)
            print(
                f"Left out, since the gradient of the logits is exactly zero in their maps: {names} (in a ViT that "
                "pools its class token, the patch tokens after the last attention do not reach the logits)"
            )
        print("Choose one past the middle whose map still has about 7 x 7 cells, then run again with --layer.")
        return 0
    with PALLoss(model, args.layer) as pal, running(args.model, args.size, "--size"):
        report = pal.check(images)
    print(report)
    return 1 if report.problems else 0


def build(name: str, classes: int, size: int) -> nn.Module:
    """The model of that name with random weights: PACKAGE.MODULE:FACTORY, a name that `pal-fast train` accepts, or
    one of torchvision's segmentation and detection networks."""
    from pal_fast.training.networks import LIBRARIES, build_network

    place, colon, factory = name.partition(":")
    if colon and place not in LIBRARIES:
        return _made_by(name, place, factory)
    return _on_a_backbone(name, classes) or build_network(name, classes, size)


def _made_by(name: str, module: str, factory: str) -> nn.Module:
    from torch import nn

    # `python -m` puts the working directory on sys.path; a console script puts its own folder there instead.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        made = getattr(importlib.import_module(module), factory, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # a dependency of the module, not the module itself
        raise ImportError(
            f"model {name!r}: there is no module {error.name!r} in {os.getcwd()} or among those installed"
        ) from error
    if made is None:
        raise ValueError(f"model {name!r}: {module} has no {factory!r}")
    model: Any = made()
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _on_a_backbone(name: str, classes: int) -> nn.Module | None:
    """torchvision's segmentation or detection network of that name, head and backbone untrained; None for others."""
    try:
        import torchvision
    except ImportError:
        return None
    if name not in torchvision.models.list_models():
        return None
    if "weights_backbone" not in inspect.signature(torchvision.models.get_model_builder(name)).parameters:
        return None
    model: nn.Module = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=classes)
    return model

"""Networks by name: torchvision's, timm's and a small one for drawn faces."""

from __future__ import annotations

import contextlib
import re
from typing import Any, Final

from torch import Tensor, nn

from pal_fast.messages import near

SMALL = "small"

#: Allowed prefixes of a name, followed by a colon.
LIBRARIES = ("torchvision", "timm")

#: The default layer (docs/training_loops.md), by library and the start of the network's name: the last stage
#: but one, at a sixteenth of the image's side. The first matching pattern is used.
DEFAULT_LAYERS: Final[dict[str, dict[str, str]]] = {
    "torchvision": {
        r"resnet|resnext|wide_resnet": "layer3",
        r"densenet": "features.denseblock3",
        r"convnext|efficientnet_b0$": "features.5",
    },
    "timm": {
        # networks named ResNet but built from other blocks
        r"resnetv2_|resnet\d+(x\d+)?_(clip|mlp)|resnex?t\d+(ts|q)$": "stages.2",
        r"resnet|resnext|wide_resnet": "layer3",
        r"densenet": "features.denseblock3",
        r"convnext": "stages.2",
        r"efficientnet_b0(_|$)": "blocks.4",
    },
}


class SmallNetwork(nn.Module):
    """Four convolutions for small images: `body` ends in (B, 48, S / 4, S / 4), `head` turns it into logits.

    The head keeps the positions, like VGG's.
    """

    def __init__(self, classes: int, size: int) -> None:
        super().__init__()
        if size % 8:
            raise ValueError(f"size must be a multiple of 8 for model 'small', got {size}")

        def block(inputs: int, outputs: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

        self.body = nn.Sequential(*block(3, 24), nn.MaxPool2d(2), *block(24, 48), nn.MaxPool2d(2), *block(48, 48))
        cells = (size // 8) ** 2
        self.head = nn.Sequential(*block(48, 64), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64 * cells, classes))

    def forward(self, images: Tensor) -> Tensor:  # (B, 3, S, S) -> (B, classes)
        logits: Tensor = self.head(self.body(images))
        return logits


def build_network(name: str, classes: int, size: int) -> nn.Module:
    """The network of that name with random weights and a head of `classes` logits.

    Raises: ValueError for an unknown name, with the nearest ones; ImportError without torchvision and timm.
    """
    if name == SMALL:
        return SmallNetwork(classes, size)
    library, plain = find_library(name)
    return _from_torchvision(plain, classes) if library == "torchvision" else _from_timm(plain, classes, size)


def make_twice_differentiable(network: nn.Module, name: str) -> str:
    """Replaces, in place, modules without a second derivative that have an equivalent with one. Returns a message.

    Weights, parameter names and output values do not change.
    """
    from pal_fast.nn import replace_hardsigmoid

    replaced = len(replace_hardsigmoid(network))
    if not replaced:
        return ""
    return f"{replaced} Hardsigmoid of {name} are replaced by a twice differentiable equivalent: same values"


def default_layer(name: str) -> str | None:
    """The layer to attribute by default; None for a network that is not in `DEFAULT_LAYERS`."""
    if name == SMALL:
        return "body"
    library, plain = _library_of(name)
    known = DEFAULT_LAYERS.get(library, {})
    return next((layer for pattern, layer in known.items() if re.match(pattern, plain.partition(".")[0])), None)


def _library_of(name: str) -> tuple[str, str]:
    """Like `find_library`, but for names that need not exist, and without requiring the libraries."""
    prefix, colon, rest = name.partition(":")
    if colon:
        return prefix, rest
    with contextlib.suppress(ImportError):
        import torchvision

        if name not in torchvision.models.list_models(module=torchvision.models):
            return "timm", name
    return "torchvision", name


def find_library(name: str) -> tuple[str, str]:
    """("torchvision" or "timm", the name in it); a name in both is torchvision's."""
    try:
        import timm
        import torchvision
    except ImportError as error:
        raise ImportError(
            f"model {name!r} needs torchvision and timm: pip install 'pal_fast[train]' (or use model 'small')"
        ) from error
    prefix, colon, rest = name.partition(":")
    if colon and prefix not in LIBRARIES:
        raise ValueError(f"model {name!r} must be a name, timm:NAME or torchvision:NAME")
    plain = rest if colon else name
    # torchvision's top-level models are classifiers; those for detection etc. are in packages of their own.
    if prefix != "timm" and plain in torchvision.models.list_models(module=torchvision.models):
        return "torchvision", plain
    if prefix != "torchvision" and timm.is_model(plain):
        return "timm", plain
    known = [SMALL, *torchvision.models.list_models(module=torchvision.models), *timm.list_models()]
    raise ValueError(f"model {name!r} is neither torchvision's nor timm's{near(plain, known)}")


def _from_torchvision(name: str, classes: int) -> nn.Module:
    import torchvision

    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):  # their auxiliary heads return more than logits
        options = {"aux_logits": False, "init_weights": True}
    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    return network


def _from_timm(name: str, classes: int, size: int) -> nn.Module:
    import timm

    # Transformers hold an embedding per position and need the image size; convolutional networks reject the argument.
    with contextlib.suppress(TypeError):
        sized: nn.Module = timm.create_model(name, num_classes=classes, img_size=size)
        return sized
    network: nn.Module = timm.create_model(name, num_classes=classes)
    return network

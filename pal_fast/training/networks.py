"""Networks by name: torchvision's, timm's and a small one for drawn faces, and their initial weights."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from pal_fast.messages import first_few, near
from pal_fast.training.run_folder import RunFolder

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


@dataclass(frozen=True)
class Beginning:
    """A network before training, and the origin of its weights in words."""

    network: nn.Module
    source: str
    pretrained: bool


def build_network(name: str, classes: int, size: int) -> nn.Module:
    """The network of that name with random weights and a head of `classes` logits.

    Raises: ValueError for an unknown name, with the nearest ones; ImportError without torchvision and timm.
    """
    if name == SMALL:
        return SmallNetwork(classes, size)
    library, plain = find_library(name)
    return _from_torchvision(plain, classes) if library == "torchvision" else _from_timm(plain, classes, size)


def begin(name: str, classes: int, size: int, *, pretrained: str = "no", weights: str | None = None) -> Beginning:
    """The network with its initial weights.

    Args:
        pretrained: "yes" lets torchvision or timm find or download its own weights; "auto" uses them only if they are
            on this machine already.
        weights: a file with a state_dict to use instead.

    Raises: ValueError, OSError naming the file or the weights that could not be loaded.
    """
    network = build_network(name, classes, size)
    if weights is not None:
        return Beginning(network, load_weights(network, Path(weights)), False)
    if pretrained == "no":
        return Beginning(network, "random weights", False)
    if name == SMALL:
        if pretrained == "yes":
            raise ValueError("pretrained='yes': model 'small' has no pretrained weights")
        return Beginning(network, "random weights (model 'small' has no others)", False)
    library, plain = find_library(name)
    state, source = (_torchvision_weights if library == "torchvision" else _timm_weights)(plain, pretrained == "yes")
    if state is None:
        return Beginning(network, f"random weights ({source})", False)
    return Beginning(network, f"{source}; {_load_matching(network, state, source)}", True)


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


def _torchvision_weights(name: str, fetch: bool) -> tuple[dict[str, Tensor] | None, str]:
    import torchvision

    default = torchvision.models.get_model_weights(name).DEFAULT
    place = Path(torch.hub.get_dir()) / "checkpoints" / default.url.rsplit("/", 1)[1]
    source = f"torchvision's {default} from {place}"
    if place.is_file():
        return _read_weights(place), source
    if not fetch:
        return None, f"torchvision's {default} are not on this machine: no file {place}"
    try:
        return default.get_state_dict(progress=False, check_hash=True), source
    except OSError as error:
        raise OSError(
            f"pretrained: torchvision's {default} could not be fetched from {default.url} ({error}); "
            f"put that file at {place}"
        ) from error


def _timm_weights(name: str, fetch: bool) -> tuple[dict[str, Tensor] | None, str]:
    import timm
    from huggingface_hub import try_to_load_from_cache
    from timm.models import load_state_dict_from_hf

    config = timm.get_pretrained_cfg(name)
    hub = config.hf_hub_id if config is not None else None
    if config is None or hub is None:
        if fetch:
            raise ValueError(f"pretrained: timm has no weights on the hub for model {name!r}; give a file as weights")
        return None, f"timm has no weights on the hub for {name}"
    for file in (config.hf_hub_filename, "model.safetensors", "pytorch_model.bin"):
        place = try_to_load_from_cache(hub, file) if file else None
        if isinstance(place, str):
            return _read_weights(Path(place)), f"timm's {hub} from {place}"
    if not fetch:
        return None, f"timm's {hub} is not in this machine's hub cache"
    try:
        return load_state_dict_from_hf(hub), f"timm's {hub}"
    except Exception as error:  # the hub's client raises different exceptions for each way of not finding a file
        raise OSError(
            f"pretrained: timm's {hub} could not be fetched ({type(error).__name__}); fill the hub's cache where there "
            "is a network, or give the file as weights"
        ) from error


def load_weights(network: nn.Module, path: Path) -> str:
    """Loads the entries of a file that match the network, and returns how many in words.

    Raises: ValueError, OSError naming the file if it cannot be read or nothing in it matches.
    """
    return f"{path}; {_load_matching(network, _read_weights(path), str(path))}"


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The state_dict in a file or a run's folder, unwrapped from common checkpoint layouts.

    Raises: ValueError, OSError naming the file.
    """
    if path.is_dir():
        path = RunFolder(path).model
    if not path.is_file():
        raise FileNotFoundError(f"weights: there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"weights: {path} is not a readable state_dict ({type(error).__name__}); use .safetensors, or .pt and .pth "
            "without pickled code"
        ) from error
    for wrapping in ("network", "model", "state_dict", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(wrapping), dict):
            state = state[wrapping]
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"weights: {path} holds no state_dict")
    return {
        name.removeprefix("module.").removeprefix("model."): value
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def _load_matching(network: nn.Module, state: dict[str, Tensor], source: str) -> str:
    own = network.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    other = [name for name in state if name in own and own[name].shape != state[name].shape]
    missing = [name for name in own if name not in state]
    if not any(own[name].ndim > 1 for name in fitting):
        raise ValueError(
            f"weights: nothing in {source} matches the network; it holds {first_few(state, 4)}, "
            f"the network {first_few(own, 4)}"
        )
    network.load_state_dict(fitting, strict=False)
    said = f"{len(fitting)} of {len(own)} tensors loaded"
    if other:
        said += f", of another shape and left out: {first_few(other, 4)}"
    if missing:
        said += f", not in the file: {first_few(missing, 4)}"
    return said

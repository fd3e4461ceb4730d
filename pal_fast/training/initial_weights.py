"""The initial weights of a network: random, its library's own, or those of a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pal_fast.messages import first_few
from pal_fast.training.networks import SMALL, build_network, find_library
from pal_fast.training.run_folder import RunFolder


@dataclass(frozen=True)
class Loaded:
    """How many tensors of a network were loaded from a state_dict, and which keep their random values.

    Attributes:
        misshapen: have another shape in the state_dict.
        missing: are not in the state_dict.
    """

    count: int
    total: int
    misshapen: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        said = f"{self.count} of {self.total} tensors loaded"
        if self.misshapen:
            said += f", of another shape and left out: {first_few(self.misshapen, 4)}"
        if self.missing:
            said += f", not in the file: {first_few(self.missing, 4)}"
        return said


@dataclass(frozen=True)
class Beginning:
    """A network before training.

    Attributes:
        source: the origin of its weights in words.
        pretrained: whether they are the library's own.
        loaded: what was loaded from `source`; None for random weights.
    """

    network: nn.Module
    source: str
    pretrained: bool = False
    loaded: Loaded | None = None

    def __str__(self) -> str:
        return self.source if self.loaded is None else f"{self.source}; {self.loaded}"


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
        return Beginning(network, weights, loaded=load_weights(network, Path(weights)))
    if pretrained == "no":
        return Beginning(network, "random weights")
    if name == SMALL:
        if pretrained == "yes":
            raise ValueError("pretrained='yes': model 'small' has no pretrained weights")
        return Beginning(network, "random weights (model 'small' has no others)")
    library, plain = find_library(name)
    state, source = (_torchvision_weights if library == "torchvision" else _timm_weights)(plain, pretrained == "yes")
    if state is None:
        return Beginning(network, f"random weights ({source})")
    return Beginning(network, source, True, _load_matching(network, state, source))


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


def load_weights(network: nn.Module, path: Path) -> Loaded:
    """Loads the entries of a file that match the network.

    Raises: ValueError, OSError naming the file if it cannot be read or nothing in it matches.
    """
    return _load_matching(network, _read_weights(path), str(path))


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


def _load_matching(network: nn.Module, state: dict[str, Tensor], source: str) -> Loaded:
    own = network.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if not any(own[name].ndim > 1 for name in fitting):
        raise ValueError(
            f"weights: nothing in {source} matches the network; it holds {first_few(state, 4)}, "
            f"the network {first_few(own, 4)}"
        )
    network.load_state_dict(fitting, strict=False)
    misshapen = tuple(name for name in state if name in own and name not in fitting)
    return Loaded(len(fitting), len(own), misshapen, tuple(name for name in own if name not in state))

"""`TrainingConfig`: everything that determines the result of a training run, checked, and stored as a file with it."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from pal_fast import _checks
from pal_fast.attribution.targets import TARGETS
from pal_fast.constants import ATTRIBUTION, BACKENDS, CHANNELS, COMBINE, NORMALIZE, SCALE, SCORE
from pal_fast.data import DATASETS
from pal_fast.landmarks import FORMATS
from pal_fast.messages import describe, near
from pal_fast.options import AttributionOptions, HeatmapOptions, LossOptions
from pal_fast.regions import region_weights

ANSWERS: Final = ("auto", "yes", "no")
PRECISIONS: Final = ("no", "bf16", "fp16")
DEVICES: Final = ("auto", "cpu", "cuda")


def option(default: Any, text: str, **metadata: Any) -> Any:
    """A field with its help text; `choices`, `metavar` and `group` are for the command line."""
    return field(default=default, metadata={"help": text, **metadata})


@dataclass(frozen=True)
class TrainingConfig:
    """The full set of options. The same config, number of processes and machine give the same weights, bit for bit.

    Raises: ValueError, TypeError naming the option.
    """

    data: str = option(MISSING, "the data set", choices=DATASETS, group="data")
    root: str | None = option(
        None, "its folder; for drawn its options, such as count=200,test_count=100", metavar="DIR", group="data"
    )
    landmarks: str | None = option(
        None, "landmarks of the images, if the data set has none of its own", metavar="FILE", group="data"
    )
    format: str | None = option(
        None,
        "format of the landmarks, if their files do not show it: one of pal-fast convert --list-formats",
        choices=tuple(FORMATS),
        group="data",
    )
    classes: int | None = option(None, "number of classes, where the data set offers a choice", group="data")
    size: int | None = option(None, "side of the images in pixels (default 224; 48 for drawn faces)", group="data")
    bad_images: str = option(
        "error", "absent and unreadable images: report one error, or skip them", choices=("error", "skip"), group="data"
    )
    verify: str = option(
        "quick",
        "check of each image before training; quick: the header and the end of its file; full: decode it",
        choices=("quick", "full"),
        group="data",
    )
    augment: bool = option(True, "random crops, flips and rotations in training", group="data")
    balanced: str = option(
        "auto", "sample classes equally often; auto: for affectnet only", choices=ANSWERS, group="data"
    )
    limit: int | None = option(None, "use only N images of each split, for a trial run", metavar="N", group="data")
    workers: int = option(2, "data-loading processes per training process", group="data")

    model: str = option(
        "resnet50", "a network of torchvision or timm (timm:NAME if both have it), or small", group="network"
    )
    pretrained: str = option(
        "auto",
        "the library's own weights; auto: if they are on this machine (a message says so); yes: downloaded if needed",
        choices=ANSWERS,
        group="network",
    )
    weights: str | None = option(
        None,
        "a state_dict to start from instead (.pt, .pth or .safetensors), or an earlier run's folder",
        metavar="FILE",
        group="network",
    )
    sync_batchnorm: bool = option(False, "compute batch statistics over all processes", group="network")
    prepare_head: bool = option(
        False, "cheaper second derivatives above the layer (pal_fast.nn.prepare_head)", group="network"
    )

    weight: float = option(1.0, "weight of the loss; 0 trains the baseline, without it", group="loss")
    layer: tuple[str, ...] = option(
        (), "the attributed layer; several are averaged (default: known for common networks)", group="loss"
    )
    attribution: str = option("grad_input", "the kind of attribution", choices=ATTRIBUTION, group="loss")
    absolute: bool = option(True, "take the absolute gradient, as the paper does", group="loss")
    channels: str = option("mean", "the channel strategy", choices=CHANNELS, group="loss")
    channel_count: int | float | None = option(
        None, "how many channels take part: a number, or a fraction such as 0.25", group="loss"
    )
    score: str = option("pearson", "pearson, or the paper's formula", choices=SCORE, group="loss")
    scale: str = option("sum", "scale of cross_correlation", choices=SCALE, group="loss")
    target: str = option("sum", "the scalar to attribute", choices=TARGETS, group="loss")
    sigma: float | None = option(
        None, "standard deviation of the Gaussians in pixels (default: a sixteenth of the size)", group="loss"
    )
    combine: str = option("sum", "how the Gaussians are combined", choices=COMBINE, group="loss")
    normalize: str = option("none", "how the heatmap is normalised", choices=NORMALIZE, group="loss")
    regions: tuple[str, ...] = option(
        (), "regions of the 68-point scheme that take part: eyes, or eyes=2 with a weight", group="loss"
    )
    backend: str | None = option(None, "backend of the loss (default: the fastest)", choices=BACKENDS, group="loss")

    epochs: int = option(30, "passes over the training images", group="training")
    batch: int = option(64, "images per optimiser step, over all processes and accumulated parts", group="training")
    accumulate: int = option(
        1, "parts into which each process splits its share of the batch, for gradient accumulation", group="training"
    )
    learning_rate: float = option(1e-4, "initial learning rate of Adam", group="training")
    power: float = option(1.0, "exponent of the polynomial decay to 0; 0 keeps the rate constant", group="training")
    weight_decay: float = option(0.0, "weight decay of Adam", group="training")
    precision: str = option("no", "mixed precision: none, bf16 or fp16", choices=PRECISIONS, group="training")
    seed: int = option(0, "seed of the weights, the data order, the augmentation and dropout", group="training")
    deterministic: bool = option(
        True, "reproducible kernels where PyTorch has them; --no-deterministic may be faster on a GPU", group="training"
    )
    device: str = option("auto", "where to train", choices=DEVICES, group="training")

    checkpoint_every: int = option(1000, "steps between checkpoints; one is also written after each epoch")
    validate_every: int = option(1, "epochs between validations; the last epoch always has one")
    gallery: int = option(24, "validation faces whose attributions are stored for pictures")

    def __post_init__(self) -> None:
        for name, kinds in _KINDS.items():
            value = getattr(self, name)
            if isinstance(value, list) and tuple in kinds:
                value = tuple(value)
                object.__setattr__(self, name, value)
            if isinstance(value, int) and not isinstance(value, bool) and float in kinds and int not in kinds:
                value = float(value)
                object.__setattr__(self, name, value)
            if type(value) not in kinds:
                wanted = " or ".join(_WORDS[kind] for kind in kinds)
                raise TypeError(f"{name} must be {wanted}, got {describe(value)}")
            choices = _FIELDS[name].metadata.get("choices")
            if choices is not None and value is not None:
                _checks.choice(name, value, choices)
        for name in ("layer", "regions"):
            if not all(isinstance(part, str) and part for part in getattr(self, name)):
                raise TypeError(f"{name} must hold names, got {describe(getattr(self, name))}")
        for name in ("epochs", "batch", "accumulate", "learning_rate", "validate_every", "checkpoint_every"):
            _checks.positive_number(name, getattr(self, name))
        for name in ("classes", "size", "limit"):
            if getattr(self, name) is not None:
                _checks.positive_number(name, getattr(self, name))
        for name in ("weight", "power", "weight_decay", "workers", "seed", "gallery"):
            _checks.number_within(name, getattr(self, name), 0)
        if self.batch % self.accumulate:
            raise ValueError(f"batch={self.batch} must be a multiple of accumulate={self.accumulate}")
        if self.weights is not None and self.pretrained == "yes":
            raise ValueError("weights and pretrained='yes' both set the network's initial weights: give one of them")
        if self.format is not None and self.landmarks is None:
            raise ValueError(f"format applies to the landmarks' file, got format={self.format!r} and no landmarks")
        self.loss_options()
        region_weights(self.region_choice())

    def loss_options(self) -> LossOptions:
        """The loss's options, checked."""
        return LossOptions(
            AttributionOptions(self.attribution, self.absolute, self.channels, self.channel_count),
            HeatmapOptions(self.sigma, self.combine, self.normalize),
            self.score,
            self.scale,
        )

    def region_choice(self) -> dict[str, float] | None:
        """`regions` as `PALLoss` takes them; None for all landmarks."""
        if not self.regions:
            return None
        chosen: dict[str, float] = {}
        for entry in self.regions:
            name, equals, number = entry.partition("=")
            try:
                chosen[name] = float(number) if equals else 1.0
            except ValueError:
                raise ValueError(f"regions must be names such as eyes or eyes=2, got {entry!r}") from None
        return chosen

    def resolved(self) -> TrainingConfig:
        """The config with every default that depends on another option filled in.

        Raises: ValueError if the loss is used on a network whose layer is neither given nor known.
        """
        layer = self.layer
        if not layer:
            from pal_fast.training.networks import default_layer

            known = default_layer(self.model)
            if known is None and self.weight:
                raise ValueError(
                    f"layer must be named for model {self.model!r}; `pal-fast doctor {self.model}` lists its layers"
                )
            layer = () if known is None else (known,)
        balanced = self.balanced
        if balanced == "auto":
            balanced = "yes" if self.data == "affectnet" else "no"
        size = self.size or (48 if self.data == "drawn" else 224)
        return replace(self, layer=layer, balanced=balanced, size=size)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, as stored in the file."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str = "config") -> TrainingConfig:
        """Raises: ValueError or TypeError naming `source` and the option."""
        unknown = [name for name in values if name not in _FIELDS]
        if unknown:
            raise ValueError(f"{source}: there is no option {', '.join(map(repr, unknown))}{near(unknown[0], _FIELDS)}")
        if "data" not in values:
            raise ValueError(f"{source}: data must be one of {', '.join(map(repr, DATASETS))}; it is missing")
        try:
            return cls(**values)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{source}: {error}") from None


def difference(one: TrainingConfig, other: TrainingConfig) -> list[str]:
    """The options in which two configs differ, each as "name: this, that"."""
    return [
        f"{name}: {getattr(one, name)!r}, {getattr(other, name)!r}"
        for name in _FIELDS
        if getattr(one, name) != getattr(other, name)
    ]


def read_config(path: str | Path) -> dict[str, Any]:
    """The options in a .json or .toml file, which may omit any of them.

    Raises: ValueError, OSError naming the file.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".toml":
            values: Any = _toml().loads(text)
        else:
            values = json.loads(text)
    except OSError as error:
        raise type(error)(f"config {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not a valid {path.suffix.lstrip('.') or 'JSON'} file: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a table of options, got {describe(values)}")
    return values


def _toml() -> Any:
    try:
        import tomllib
    except ImportError:
        raise ValueError("reading TOML needs Python 3.11 or later; write the config as .json") from None
    return tomllib


def _kinds(annotation: Any) -> tuple[type, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(kind for part in typing.get_args(annotation) for kind in _kinds(part))
    return (typing.get_origin(annotation) or annotation,)


_FIELDS: Final = {entry.name: entry for entry in fields(TrainingConfig)}
_KINDS: Final = {name: _kinds(hint) for name, hint in typing.get_type_hints(TrainingConfig).items() if name in _FIELDS}
_WORDS: Final = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "a list",
    type(None): "nothing",
}


def option_fields() -> dict[str, tuple[Any, tuple[type, ...]]]:
    """Each option's dataclass field and accepted types, for the command line."""
    return {name: (entry, _KINDS[name]) for name, entry in _FIELDS.items()}

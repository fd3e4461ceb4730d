"""The set-up of a run: the training and validation splits, the loss, and a trial step."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pal_fast import PALLoss
from pal_fast.attribution.targets import takes_labels
from pal_fast.capture.model_run import running
from pal_fast.landmarks.errors import NoLandmarksError
from pal_fast.regions import check_scheme
from pal_fast.training.config import TrainingConfig
from pal_fast.training.evaluation import check_logits, measured_attribution
from pal_fast.training.loading import check_classes, evaluation_loader, open_split, training_batches, training_loader
from pal_fast.warn import FlatLossWarning

#: PyTorch's message for batch statistics over a single value.
_SINGLE_VALUE = "Expected more than 1 value per channel when training"


@dataclass
class Splits:
    """Training and validation data of one process."""

    training: Any
    validation: Any
    classes: list[str]
    batches: Any  # which images of `training` make each step
    loader: Any  # of `training`
    validation_loader: Any


def open_splits(config: TrainingConfig, size: int, accelerator: Any) -> Splits:
    """The data of `config`, images of `size` x `size` pixels.

    Raises: ValueError if the splits do not match each other, or the landmarks do not suit the loss.
    """
    from pal_fast import data

    transform = (data.train_transform if config.augment else data.eval_transform)(size)
    training = open_split(config, "train", transform=transform)
    validation = _open_validation(config, data.eval_transform(size))
    check_classes(training, "training", config.limit)
    classes = [str(name) for name in training.classes]
    if [str(name) for name in validation.classes] != classes:
        raise ValueError(
            f"data: the classes of the two splits differ: {', '.join(classes)} and "
            f"{', '.join(map(str, validation.classes))}"
        )
    if config.weight and not training.landmark_count:
        raise ValueError(
            f"landmarks are needed for weight={config.weight:g}, and {config.data} has none: make a file with "
            "`pal-fast landmarks` and give it as landmarks, or train the baseline with weight 0"
        )
    if config.weight and config.regions:
        check_scheme(training.landmark_count, f"the landmarks of {config.data}")
    processes, process = accelerator.num_processes, accelerator.process_index
    pin = accelerator.device.type == "cuda"
    batches = training_batches(config, training, process, processes)
    return Splits(
        training,
        validation,
        classes,
        batches,
        training_loader(config, batches, pin),
        evaluation_loader(
            validation, config.batch // (processes * config.accumulate), config.workers, process, processes, pin
        ),
    )


def _open_validation(config: TrainingConfig, transform: Any) -> Any:
    """Landmarks are privileged information: a test split without them is validated without an alignment."""
    try:
        return open_split(config, "test", transform=transform)
    except NoLandmarksError as error:
        warnings.warn(f"no alignment is measured on the test split: {error}", stacklevel=2)
        return open_split(config, "test", transform=transform, landmarks=False)


def prepare(config: TrainingConfig, network: nn.Module, size: int, accelerator: Any) -> None:
    """Calls `prepare_head` right away, if the loss and `config.prepare_head` ask for it.

    Without an example it would act in the first step, and a resumed run would take a different step unprepared from an
    uninterrupted one. The example leaves no trace: eval mode, no gradients, and random states are restored.

    Args: network, on its device, before Accelerate wraps it; its input is `size` x `size`.
    """
    if not (config.prepare_head and config.weight):
        return
    from pal_fast.nn import prepare_head

    device = accelerator.device
    example = torch.zeros(2, 3, size, size, device=device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), accelerator.autocast():
        prepare_head(network, list(config.layer), example)


def make_loss(config: TrainingConfig, model: nn.Module) -> PALLoss:
    return PALLoss(
        model,
        list(config.layer),
        attribution=config.attribution,
        absolute=config.absolute,
        channels=config.channels,
        channel_count=config.channel_count,
        score=config.score,
        scale=config.scale,
        target=config.target,
        sigma=config.sigma,
        combine=config.combine,
        normalize=config.normalize,
        regions=config.region_choice(),
        weight=config.weight,
        backend=config.backend,
    )


def try_out(config: TrainingConfig, network: nn.Module, splits: Splits, size: int, accelerator: Any) -> None:
    """Runs one step of a copy of `network` on noise images, before the folder is claimed for this run.

    It uses two images, or one if each part of a step holds one.

    Raises: ValueError, TypeError, RuntimeError naming the layer or the option that does not fit the network.
    """
    device = accelerator.device
    network = copy.deepcopy(network)
    noise = torch.Generator().manual_seed(0)
    part = config.batch // (accelerator.num_processes * config.accumulate)
    # Synchronised batch statistics, which the copy lacks, cover more than one part.
    count = 2 if config.sync_batchnorm and accelerator.num_processes > 1 else min(2, part)
    images = torch.randn(count, 3, size, size, generator=noise).to(device)
    labels = torch.zeros(count, dtype=torch.int64, device=device)
    landmarks = torch.rand(count, splits.training.landmark_count, 2, generator=noise).to(device) * (size - 1)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            with torch.no_grad(), accelerator.autocast(), running(config.model, size, "size"):
                network.train()(images)
        except ValueError as error:
            if _SINGLE_VALUE not in str(error):
                raise
            raise ValueError(
                f"batch: a BatchNorm of {config.model} sees a single value per channel, since each part of a step "
                f"holds {part} image (batch={config.batch}, accumulate={config.accumulate}, "
                f"{accelerator.num_processes} processes) and its map at size={size} a single cell: use a larger batch "
                "or size, or a smaller accumulate"
            ) from error
        prepare(config, network, size, accelerator)
        pal = make_loss(config, network) if config.weight else None
        with accelerator.autocast():
            logits = network(images)
        check_logits(logits, len(splits.classes), len(images))
        loss = F.cross_entropy(logits.float(), labels)
        if pal is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("error", FlatLossWarning)
                try:
                    loss = loss + pal(logits, landmarks, labels=labels if takes_labels(config.target) else None)
                except FlatLossWarning as flat:
                    raise ValueError(f"layer: on a step of noise, {flat}") from None
        loss.backward()
        if pal is not None:
            pal.remove()
        network.eval()
        for layer in config.layer:
            with accelerator.autocast():
                measured_attribution(network, layer, images)

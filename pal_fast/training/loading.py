"""Batches: which images a process loads at which step, determined by the seed, the epoch and the step alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pal_fast.image_files import UnreadableImageError
from pal_fast.messages import first_few
from pal_fast.training.config import TrainingConfig
from pal_fast.training.randomness import Key, SeededDataset, derive


class Part(Dataset[dict[str, Any]]):
    """A subset of a data set, with the attributes of the whole."""

    def __init__(self, dataset: Any, chosen: Sequence[int]) -> None:
        self.dataset, self.chosen = dataset, list(chosen)
        self.classes = dataset.classes
        self.landmark_count = dataset.landmark_count
        self.labels = torch.as_tensor(dataset.labels)[self.chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, place: int) -> dict[str, Any]:
        sample: dict[str, Any] = self.dataset[self.chosen[place]]
        return sample | {"index": place}

    @property
    def class_counts(self) -> torch.Tensor:
        """(classes,) int64."""
        return self.labels.bincount(minlength=len(self.classes))

    @property
    def names(self) -> list[str]:
        names = self.dataset.names
        return [names[index] for index in self.chosen]


def evenly(dataset: Any, limit: int | None) -> Any:
    """The data set, or `limit` of its samples spread evenly over its length."""
    if limit is None or limit >= len(dataset):
        return dataset
    return Part(dataset, np.linspace(0, len(dataset) - 1, limit).round().astype(int).tolist())


def open_split(
    config: TrainingConfig,
    split: str,
    *,
    transform: Any,
    landmarks: bool = True,
    classes: Sequence[str] | None = None,
) -> Any:
    """One split of the config's data.

    Args: classes: the names of those to keep, in this order, instead of `config.classes`.

    Raises: ValueError, OSError naming the argument or the file.
    """
    from pal_fast.data import open_dataset

    if config.root is None and config.data != "drawn":
        raise ValueError(f"root is required: the folder of {config.data}")
    dataset = open_dataset(
        config.data,
        config.root or "",
        split,
        landmarks=config.landmarks if landmarks else False,
        format=config.format if landmarks else None,
        transform=transform,
        classes=config.classes if classes is None else classes,
        bad_images=config.bad_images,
        verify=config.verify,
    )
    if len(dataset) == 0:
        raise ValueError(f"data: {config.data} in {config.root} has no {split} image")
    return evenly(dataset, config.limit)


def check_classes(dataset: Any, split: str, limit: int | None = None) -> None:
    """Raises: ValueError naming the classes without an image in a training split of at most `limit` images."""
    empty = [str(name) for name, count in zip(dataset.classes, dataset.class_counts, strict=True) if count == 0]
    if empty:
        raise ValueError(
            f"data: {len(empty)} of {len(dataset.classes)} classes have no {split} image: {first_few(empty)}; add "
            f"images,{f' set limit (--limit) above {limit},' if limit else ''} or leave classes out with classes "
            "(--classes N keeps the first N)"
        )


@dataclass
class EpochBatches:
    """One process's batches of one epoch, starting at a step; set `epoch` and `first_step` before each iteration.

    Every process computes the same order of the whole epoch and takes its share of each step's `batch` images, in
    `accumulate` parts. The last images that do not fill a step are left out of that epoch.
    """

    dataset: Any
    seed: int
    batch: int
    accumulate: int
    balanced: bool
    process: int
    processes: int
    epoch: int = 0
    first_step: int = 0

    @property
    def steps(self) -> int:
        """Optimiser steps in an epoch."""
        return len(self.dataset) // self.batch

    def order(self) -> list[int]:
        """Indices of the epoch's images, in the order of use."""
        generator = torch.Generator().manual_seed(derive(self.seed, "order", self.epoch))
        if self.balanced:
            from pal_fast.data import class_balanced_sampler

            return [int(index) for index in class_balanced_sampler(self.dataset, generator)]
        return torch.randperm(len(self.dataset), generator=generator).tolist()

    def __iter__(self) -> Iterator[list[Key]]:
        order = self.order()
        seed = derive(self.seed, "epoch", self.epoch)
        part = self.batch // (self.processes * self.accumulate)
        for step in range(self.first_step, self.steps):
            for number in range(self.accumulate):
                start = step * self.batch + (self.process * self.accumulate + number) * part
                yield [(seed, position, order[position]) for position in range(start, start + part)]

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.accumulate


def training_batches(config: TrainingConfig, dataset: Any, process: int, processes: int) -> EpochBatches:
    """Raises: ValueError if the batch cannot be divided evenly, or exceeds the data set."""
    share = processes * config.accumulate
    if config.batch % share:
        raise ValueError(
            f"batch={config.batch} must be a multiple of processes x accumulate = {processes} x {config.accumulate}"
        )
    if config.batch > len(dataset):
        raise ValueError(f"batch={config.batch} is more than the {len(dataset)} training images")
    return EpochBatches(
        dataset, config.seed, config.batch, config.accumulate, config.balanced == "yes", process, processes
    )


def training_loader(config: TrainingConfig, batches: EpochBatches, pin: bool) -> DataLoader[dict[str, Any]]:
    """Iterate over it once per epoch, after setting `batches.epoch` and `batches.first_step`."""
    return DataLoader(
        SeededDataset(batches.dataset),
        batch_sampler=batches,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
        pin_memory=pin,
    )


def evaluation_loader(
    dataset: Any, batch: int, workers: int, process: int, processes: int, pin: bool
) -> DataLoader[dict[str, Any]]:
    """The samples `process`, `process + processes`, ... in this order: together the processes see each once."""
    mine = range(process, len(dataset), processes)
    return DataLoader(dataset, batch_size=batch, sampler=mine, num_workers=workers, pin_memory=pin)


@contextlib.contextmanager
def errors_in_one_line(way_out: str = "") -> Iterator[None]:
    """Re-raises loaders' errors as if there were no worker processes, whose errors PyTorch reports with a traceback.

    Args: way_out: advice appended to an error about an image that cannot be decoded.
    """
    try:
        yield
    except Exception as error:
        said, kind = str(error), type(error)
        if said.startswith("Caught ") and "Original Traceback" in said:
            said = said.strip().splitlines()[-1].partition(": ")[2]
        elif not (way_out and isinstance(error, UnreadableImageError)):
            raise
        raise kind(said + (way_out if isinstance(error, UnreadableImageError) else "")) from error

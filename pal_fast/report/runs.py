"""The contents of a run's folder that a report needs, read and checked."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pal_fast.messages import first_few
from pal_fast.training.config import TrainingConfig
from pal_fast.training.run_folder import RunFolder

Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class ReportedRun:
    """A run, complete or in progress.

    Attributes:
        name: short, and unique within a report.
        history: one entry per epoch, see `pal_fast.training`.
        environment: versions and device.
        complete: whether the training has ended.
        colour: its index in the page's list of colours.
    """

    folder: RunFolder
    name: str
    config: TrainingConfig
    history: list[dict[str, Any]]
    environment: dict[str, Any]
    complete: bool
    colour: int = 0

    @property
    def layer(self) -> str:
        """The first layer at which alignment is measured; "" for none."""
        return self.config.layer[0] if self.config.layer else ""

    @property
    def kind(self) -> str:
        """The loss in a few words."""
        config = self.config
        if not config.weight:
            return "baseline (cross-entropy)"
        attribution = config.attribution + ("" if config.absolute else ", signed")
        return f"PAL {config.weight:g} × {attribution}, {config.channels} at {' + '.join(config.layer)}"

    @cached_property
    def validated(self) -> list[dict[str, Any]]:
        """The epochs with a validation."""
        return [entry for entry in self.history if "validation" in entry]

    @cached_property
    def last(self) -> dict[str, Any] | None:
        """The latest validation."""
        return self.validated[-1]["validation"] if self.validated else None

    @cached_property
    def classes(self) -> list[str]:
        return list(self.last["recalls"]) if self.last else []

    def alignment(self, validation: dict[str, Any], metric: str = "pearson") -> float | None:
        """The metric at the first layer; None if there is none."""
        value: float | None = validation["alignment"].get(self.layer, {}).get(metric)
        return value

    @cached_property
    def faces(self) -> Arrays | None:
        """The gallery's pictures (G, H, W, 3) uint8, landmarks (G, K, 2), labels, indices and names."""
        path = self.folder.gallery / "faces.npz"
        return _arrays(path, ("pictures", "landmarks", "labels", "indices", "names")) if path.exists() else None

    @cached_property
    def gallery_epochs(self) -> list[int]:
        """The epochs at whose end the gallery was recorded; 0 is before training."""
        return sorted(int(path.stem.removeprefix("epoch_")) for path in self.folder.gallery.glob("epoch_*.npz"))

    def seen(self, epoch: int) -> Arrays:
        """maps (G, h, w), alignment (G,), probabilities (G, classes)."""
        return _arrays(self.folder.gallery_epoch(epoch), ("maps", "alignment", "probabilities"))


def read_runs(paths: Sequence[str | Path]) -> list[ReportedRun]:
    """The runs, baselines first.

    Raises: ValueError, OSError naming the folder or file.
    """
    if not paths:
        raise ValueError("runs must name at least one folder, got none")
    folders = [RunFolder(Path(path)) for path in paths]
    resolved = [folder.path.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        twice = [str(path) for place, path in enumerate(resolved) if path in resolved[:place]]
        raise ValueError(f"runs must name each folder once, got {first_few(twice)} more than once")
    read = [_read(folder, name) for folder, name in zip(folders, _names(resolved), strict=True)]
    ordered = sorted(read, key=lambda run: run.config.weight > 0)
    # The first colour is grey, for a baseline.
    first = 0 if ordered[0].config.weight == 0 else 1
    return [replace(run, colour=first + place) for place, run in enumerate(ordered)]


def _names(paths: Sequence[Path]) -> list[str]:
    """The paths without the folders that all have in common."""
    if len(paths) == 1:
        return [paths[0].name]
    common = Path(os.path.commonpath([path.parent for path in paths]))
    return [path.relative_to(common).as_posix() for path in paths]


def _read(folder: RunFolder, name: str) -> ReportedRun:
    if not folder.config.is_file():
        raise FileNotFoundError(f"{folder.path} is not a run of pal-fast train: it holds no config.json")
    config = TrainingConfig.from_mapping(folder.read_json(folder.config), str(folder.config))
    history = folder.read_json(folder.history) if folder.history.exists() else []
    if not history:
        raise ValueError(f"{folder.path} has no complete epoch yet")
    environment = folder.read_json(folder.environment) if folder.environment.exists() else {}
    return ReportedRun(folder, name, config, history, environment, folder.result.exists())


def _arrays(path: Path, names: Sequence[str]) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a gallery file of pal-fast train: {error}") from error

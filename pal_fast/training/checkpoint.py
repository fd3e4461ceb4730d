"""The progress of a training run: what a checkpoint holds besides the weights, and how it is written and read."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pal_fast.files import digest, is_partial, remove_partial_in
from pal_fast.training.config import TrainingConfig, difference
from pal_fast.training.run_folder import RunFolder, read_state, write_state

CHECKPOINT = "checkpoint"

#: What `Progress.sums` accumulates over an epoch's images, in this order; "pal" only over the "annotated" images.
SUMS = ("images", "cross_entropy", "pal", "correct", "annotated")


@dataclass
class Progress:
    """How far a training run has come.

    Attributes:
        epoch: completed epochs.
        step: completed steps of the current epoch.
        sums: (5,) float64, `SUMS` over these steps and all processes.
        seconds: time spent in these steps.
        history: one entry per complete epoch.
    """

    epoch: int = 0
    step: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(len(SUMS), dtype=torch.float64))
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


def save(
    folder: RunFolder,
    config: TrainingConfig,
    classes: list[str],
    progress: Progress,
    network: nn.Module,
    optimiser: Any,
    scaler: Any,
    processes: int,
) -> None:
    """Writes the checkpoint; on failure the previous one is kept. Raises: OSError naming the file."""
    write_state(
        folder.checkpoint,
        {
            "kind": CHECKPOINT,
            "config": config.to_mapping(),
            "classes": classes,
            "processes": processes,
            "epoch": progress.epoch,
            "step": progress.step,
            "sums": progress.sums.cpu(),
            "seconds": progress.seconds,
            "history": progress.history,
            "network": network.state_dict(),
            "optimiser": optimiser.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        },
    )


def resume(folder: RunFolder, network: nn.Module, optimiser: Any, scaler: Any, processes: int) -> Progress:
    """Restores the state in the checkpoint; without one, returns the initial progress.

    Warns if another number of processes wrote it: batch statistics per process and the order of sums then differ.

    Raises: ValueError naming a file that is not a checkpoint, or is one of another version of the package.
    """
    if not folder.checkpoint.exists():
        return Progress()
    state = read_state(folder.checkpoint, CHECKPOINT)
    before = state.get("processes", processes)
    if before != processes:
        warnings.warn(
            f"{folder.path} was trained in {before} processes and resumes in {processes}: its weights will "
            "not be those of an uninterrupted run",
            stacklevel=2,
        )
    if len(state["sums"]) != len(SUMS):
        raise ValueError(
            f"{folder.checkpoint} was written by a version of pal_fast with other figures per epoch: resume with "
            "that version, or give another --output"
        )
    network.load_state_dict(state["network"])
    optimiser.load_state_dict(state["optimiser"])
    if scaler is not None and state["scaler"] is not None:
        scaler.load_state_dict(state["scaler"])
    return Progress(state["epoch"], state["step"], state["sums"], state["seconds"], state["history"])


def check_folder(folder: RunFolder, config: TrainingConfig) -> TrainingConfig:
    """The config to resume with: what pretrained="auto" resolved to when the run began is kept.

    Raises: ValueError if the folder holds a run with another config, or files that do not belong to a run.
    """
    if not folder.path.exists():
        return config
    if not folder.path.is_dir():
        raise ValueError(f"output {folder.path} is a file; give a folder")
    if not folder.config.exists():
        others = sorted(entry.name for entry in folder.path.iterdir() if not is_partial(entry))
        leftovers = {
            folder.gallery.name,
            folder.environment.name,
            folder.data.name,
        }  # left by a run that was killed as it began
        if set(others) - leftovers:
            raise ValueError(
                f"output {folder.path} is not a run's folder: it holds {', '.join(others[:3])} and no config.json"
            )
        return config
    there = TrainingConfig.from_mapping(folder.read_json(folder.config), str(folder.config))
    if config.pretrained == "auto":
        config = replace(config, pretrained=there.pretrained)
    changed = changes(there, config)
    if changed:
        raise ValueError(
            f"output {folder.path} holds a run with other options (there, here): {'; '.join(changed)}; "
            "give another --output, or remove that folder"
        )
    return config


#: Options that do not affect the result, and so may change when a run resumes.
FREE = ("workers", "checkpoint_every")


def changes(there: TrainingConfig, config: TrainingConfig) -> list[str]:
    """The differing options that a resumed run's `config` must share with `there`, as "name: there, here".

    Paths are compared as the files they name, so that one may be absolute and the other relative.
    """
    alike = {name: getattr(there, name) for name in FREE}
    for name in ("root", "landmarks", "weights"):
        one, other = getattr(there, name), getattr(config, name)
        is_path = not (name == "root" and "drawn" in (there.data, config.data))
        if is_path and one is not None and other is not None and Path(one).resolve() == Path(other).resolve():
            alike[name] = one
    return difference(there, replace(config, **alike))


def describe_data(config: TrainingConfig) -> dict[str, Any]:
    """What a run records about its data besides their names: a digest of the landmarks' file or folder, or None."""
    place = None if config.landmarks is None else Path(config.landmarks)
    if place is None or not place.exists():  # an absent file is reported when it is read
        return {"landmarks": None}
    if place.is_file():
        return {"landmarks": digest(place)}
    files = sorted(path for path in place.rglob("*") if path.is_file())
    lines = [f"{path.relative_to(place).as_posix()} {digest(path)}" for path in files]
    return {"landmarks": hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()}


def check_data(folder: RunFolder, data: dict[str, Any], config: TrainingConfig) -> None:
    """Raises ValueError if the run in the folder was trained with other landmarks under the same name.

    Args: data: of `describe_data`.
    """
    if not folder.data.exists():
        return
    before, now = folder.read_json(folder.data)["landmarks"], data["landmarks"]
    if before is not None and now is not None and before != now:
        raise ValueError(
            f"output {folder.path} holds a run with other landmarks than {config.landmarks} holds now: give another "
            "--output, or remove that folder"
        )


def clean(folder: RunFolder) -> None:
    """Removes partial files left by killed writers. Must not be called while another process writes to the folder."""
    for place in (folder.path, folder.gallery):
        remove_partial_in(place)

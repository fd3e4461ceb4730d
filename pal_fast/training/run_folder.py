"""A run's folder: its layout, and the formats of its files."""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pal_fast.files import atomic_write, write_text
from pal_fast.messages import first_line


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_state(path: Path, state: dict[str, Any]) -> None:
    """A file for `torch.load(weights_only=True)`: tensors and plain values."""
    # Through memory: torch's zip writer hides a full disk behind errors of its own.
    memory = io.BytesIO()
    torch.save(state, memory)
    with atomic_write(path) as file:
        file.write(memory.getbuffer())


def read_state(path: Path, wanted: str) -> dict[str, Any]:
    """The contents of a file written by `write_state`, on the CPU.

    Raises: ValueError naming the file if it is not a complete file of the kind `wanted`.
    """
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        # torch's own message advises loading the file without its protection.
        raise ValueError(f"{path} is not a readable file of tensors, so not a {wanted} of pal-fast train") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"{path} is not a readable file of tensors: {reason}") from error
    if not isinstance(state, dict) or state.get("kind") != wanted:
        raise ValueError(f"{path} is not a {wanted} of pal-fast train")
    return state


@dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    config.json      the options; `pal-fast train --config` accepts it
    data.json        a digest of the landmarks' file, compared when the run resumes
    environment.json versions and number of processes at the latest start
    checkpoint.pt    the latest state to resume from
    history.json     one entry per epoch
    gallery/         attributions of some validation faces: faces.npz, epoch_NNNN.npz
    tensorboard/     scalars and pictures
    model.pt         the final weights, the classes and the config
    predictions.npz  of the final weights, one row per validation image
    result.json      the final numbers; its presence marks the run as complete
    """

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def data(self) -> Path:
        return self.path / "data.json"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def history(self) -> Path:
        return self.path / "history.json"

    @property
    def gallery(self) -> Path:
        return self.path / "gallery"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def model(self) -> Path:
        return self.path / "model.pt"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.npz"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    def gallery_epoch(self, epoch: int) -> Path:
        return self.gallery / f"epoch_{epoch:04d}.npz"

    def read_json(self, path: Path) -> Any:
        """Raises: ValueError, OSError naming the file."""
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from None

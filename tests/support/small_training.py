"""Training runs on the drawn faces that take about a second, in this process or as a command."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

import pal_fast
from pal_fast.training.config import TrainingConfig
from pal_fast.training.run_folder import RunFolder, read_state

SMALL: dict[str, Any] = {
    "data": "drawn",
    "root": "count=64,test_count=28,size=32",
    "size": 32,
    "model": "small",
    "epochs": 2,
    "batch": 16,
    "learning_rate": 1e-3,
    "workers": 0,
    "device": "cpu",
    "gallery": 8,
}


def quiet(line: str) -> None:
    """Discards a line of progress."""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The final weights of a run."""
    network: dict[str, torch.Tensor] = read_state(RunFolder(folder).model, "model")["network"]
    return network


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Equal bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def environment() -> dict[str, str]:
    """For a process with one thread, no GPU and the pal_fast that is tested here."""
    home = str(Path(pal_fast.__file__).parents[1])
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")])),
    }


def command(config: TrainingConfig, output: Path, *start: str) -> list[str]:
    """`pal-fast train`, started by `start`: options of the interpreter."""
    path = output.parent / f"{output.name}.json"
    path.write_text(json.dumps(config.to_mapping()))
    return [sys.executable, *start, "train", "--config", str(path), "--output", str(output)]

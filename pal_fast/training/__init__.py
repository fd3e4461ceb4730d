"""The paper's experiment: train, resume, evaluate, sweep and export, on one process or many.

    config = TrainingConfig(data="rafdb", root="RAF-DB/basic", model="resnet50", layer=("layer3",), weight=0.1)
    train(config, "runs/rafdb")

The command line (`pal-fast train`, `evaluate`, `sweep`, `export`) is a thin layer above these functions.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pal_fast.training.config import TrainingConfig

if TYPE_CHECKING:
    from pal_fast.training.evaluation import Evaluation
    from pal_fast.training.exporting import export
    from pal_fast.training.sweeping import sweep
    from pal_fast.training.trained import evaluate, load_network
    from pal_fast.training.trainer import train

__all__ = ["Evaluation", "TrainingConfig", "evaluate", "export", "load_network", "sweep", "train"]

# Importing one of these imports Accelerate and torchvision; importing the package does not.
_HOMES = {
    "Evaluation": "evaluation",
    "evaluate": "trained",
    "export": "exporting",
    "load_network": "trained",
    "sweep": "sweeping",
    "train": "trainer",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"pal_fast.training.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Privileged Attribution Loss for PyTorch: make a network look where it should while it trains.

    pal = pal_fast.PALLoss(model, "layer3")
    logits = model(images)
    loss = cross_entropy(logits, labels) + pal(logits, landmarks)

Bonnard, Dapogny, Dhombres, Bailly, ICPR 2022, arXiv 2203.12905.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pal_fast._checks import NotReadyError
from pal_fast._version import __version__
from pal_fast.dispatch import BackendStatus, backends
from pal_fast.functional import attribution_map, landmark_heatmap, pal_loss
from pal_fast.inspection import attribute
from pal_fast.loss import PALLoss
from pal_fast.preflight import LayerReport, Report
from pal_fast.warn import FlatLossWarning

if TYPE_CHECKING:
    from pal_fast import compiled as compiled
    from pal_fast import data, landmarks, metrics, visualize
    from pal_fast import faces as faces
    from pal_fast import nn as nn

# In a source tree the Triton kernels are in a folder beside the package; in a wheel they are pal_fast.kernels.
if (Path(__file__).parent.parent / "kernels" / "pal_loss.py").is_file():
    __path__.append(str(Path(__file__).parent.parent))

# Submodules imported on first access: some have extra dependencies, and `import pal_fast` stays light.
# Not all are in __all__: `from pal_fast import *` must not shadow another `nn`.
_ROOMS = ("compiled", "data", "faces", "landmarks", "metrics", "nn", "visualize")

__all__ = [
    "BackendStatus",
    "FlatLossWarning",
    "LayerReport",
    "NotReadyError",
    "PALLoss",
    "Report",
    "__version__",
    "attribute",
    "attribution_map",
    "backends",
    "data",
    "landmark_heatmap",
    "landmarks",
    "metrics",
    "pal_loss",
    "visualize",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"pal_fast.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})

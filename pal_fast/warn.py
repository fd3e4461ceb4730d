"""Warnings that point at the user's line, whatever frames of this package and torch are in between."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from types import FrameType

import torch

_INSIDE = (str(Path(__file__).parent) + os.sep, str(Path(torch.__file__).parent) + os.sep)


class FlatLossWarning(UserWarning):
    """The loss of one layer is 0 for every sample that counts, and will stay so."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """`warnings.warn` at the innermost line outside this package and torch."""
    frame: FrameType | None = sys._getframe(1)
    level = 2
    while frame is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)

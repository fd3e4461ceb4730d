"""If triton is not installed, keeps PyTorch from mistaking the folder `tests/triton` for it."""

from __future__ import annotations

import importlib.util
import sys


def hide() -> None:
    found = importlib.util.find_spec("triton")
    if found is None or found.origin is None:
        sys.modules["triton"] = None  # type: ignore[assignment]

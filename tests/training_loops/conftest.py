"""Where triton is not installed, `tests/triton` must not pass for it when torch.compile looks for it."""

from __future__ import annotations

import importlib.util
import sys

_found = importlib.util.find_spec("triton")
if _found is None or _found.origin is None:
    sys.modules["triton"] = None  # type: ignore[assignment]

"""torch.compile looks for triton."""

from __future__ import annotations

from support.triton_namesake import hide

hide()

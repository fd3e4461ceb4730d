"""Training steps compiled as users compile them."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import pal_fast
from pal_fast.compiled import can_compile_a_step, compile_step

of_a_step = pytest.mark.skipif(not can_compile_a_step(), reason="this PyTorch traces no gradient in a compiled step")


def compiled_step(model: nn.Module, layer: str, compiler: Any) -> Any:
    """Cross-entropy and the loss at `layer` in one compiled function."""
    pal = pal_fast.PALLoss(model, layer)

    @compile_step(backend=compiler)
    def step(images, labels, landmarks):
        logits = model(images)
        return nn.functional.cross_entropy(logits, labels) + pal(logits, landmarks)

    return step

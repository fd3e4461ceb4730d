"""Shared by the tests of prepared heads: what was replaced, and what a step computes."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class Operators(TorchDispatchMode):
    """Counts operator calls by name, and weight gradients of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = str(func)
        if func == torch.ops.aten.convolution_backward.default and args[-1][1]:
            name = "convolution_backward with wgrad"
        self.count[name] = self.count.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def replaced_types(model: nn.Module) -> dict[str, type]:
    return {name: type(m) for name, m in model.named_modules() if type(m).__module__.startswith("pal_fast.nn")}

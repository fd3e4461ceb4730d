"""Shared by the tests of attention: random inputs, and what a step computes above a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import pal_fast
from pal_fast.attribution.graph import nodes_between

DOUBLE = torch.float64


def given(*shapes: tuple[int, ...], dtype: torch.dtype = DOUBLE) -> list[Tensor]:
    return [torch.randn(shape, dtype=DOUBLE).to(dtype).requires_grad_() for shape in shapes]


def above(model: nn.Module, layer: str, images: Tensor) -> set[str]:
    """The names of the autograd nodes above the layer in a step under a loss."""
    held: list[Tensor] = []
    with pal_fast.PALLoss(model, layer):
        handle = model.get_submodule(layer).register_forward_hook(lambda module, args, output: held.append(output))
        logits = model(images)
        handle.remove()
    logits = logits if isinstance(logits, Tensor) else logits.logits
    output = held[0] if isinstance(held[0], Tensor) else held[0][0]
    return {node.name() for node in nodes_between(logits.grad_fn, [output])}

"""Which gradients a running backward pass needs, so that no others are computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def computed_now(ctx: Any, index: int) -> bool:
    """Whether the running backward pass needs the gradient of input `index`.

    `needs_input_grad` only says whether it may be needed: in `torch.autograd.grad(.., inputs=[f])` it is also True for
    the weights, whose gradient was not requested. The engine can only be asked about non-leaf nodes, see `inner`.
    """
    node = ctx.next_functions[index][0]
    return ctx.needs_input_grad[index] and (node is None or torch._C._will_engine_execute_node(node))


def wanted_of_three(ctx: Any) -> tuple[bool, bool, bool]:
    """`computed_now` of an input, a weight and a bias, of which the last may be None."""
    wanted = [computed_now(ctx, i) for i in range(min(3, len(ctx.next_functions)))]
    first, second, third = [*wanted, False, False, False][:3]
    return first, second, third


def inner(tensor: Tensor | None) -> Tensor | None:
    """The tensor itself, or a view with a node of its own if it is a leaf that requires a gradient."""
    return tensor.view_as(tensor) if tensor is not None and tensor.is_leaf and tensor.requires_grad else tensor

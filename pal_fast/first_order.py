"""The gradient of the loss through `g` without a second derivative: a central difference along `v = dP/dg`.

With S the attributed scalar and g = dS/df, the part of the loss's gradient that flows through g is
`v^T dg/dtheta = d/dtheta (v^T dS/df)`, and the bracket is the slope of S along v:

    D = sum_b (S_b(f_b + eps_b v_b) - S_b(f_b - eps_b v_b)) / (2 eps_b),    ||eps_b v_b|| = r ||f_b||

so that two more passes of the head, differentiated once, replace its second derivative. The error is of order
r^2 for a smooth head. At the kinks of a ReLU or a max-pooling it is of order 1, hence such heads are refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from pal_fast import _checks, running_statistics
from pal_fast.capture import Conditions
from pal_fast.graph import nodes_between
from pal_fast.targets import Target, one_logit, per_sample

#: r, by the layer's dtype: rounding of S grows as eps / r, the truncation as r^2.
STEP = {torch.float64: 1e-4, torch.float32: 5e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}

#: Parts of the names of autograd nodes whose derivative jumps.
_KINKS = (
    "ReluBackward",
    "Threshold",
    "Hardtanh",
    "Hardswish",
    "Hardsigmoid",
    "Prelu",
    "RreluW",
    "MaxPool",
    "MaxBackward",
    "AmaxBackward",
    "AbsBackward",
    "ClampBackward",
    "ClampMinBackward",
    "ClampMaxBackward",
    "MedianBackward",
    "SortBackward",
    "TopkBackward",
    "batch_norm_relu",
)


def check_options(head: object, reduction: str) -> None:
    """Raises TypeError or ValueError for options with which the engine cannot work."""
    if not callable(head):
        raise TypeError(
            "second_order='finite_difference' needs head=, a callable from the layer's output to the logits, got "
            f"{_checks.describe(head)}"
        )
    if reduction == "none":
        raise ValueError("second_order='finite_difference' needs reduction='mean' or 'sum', got 'none'")


def refuse_kinks(nodes: Sequence[Any]) -> None:
    """Raises RuntimeError if any of the head's autograd nodes has a derivative that jumps."""
    found = sorted({node.name() for node in nodes if any(part in node.name() for part in _KINKS)})
    if found:
        raise RuntimeError(
            f"second_order='finite_difference' is wrong for heads with kinks, and this one has {', '.join(found)}: "
            "use second_order='exact', or smooth activations (GELU, SiLU) and average pooling"
        )


def is_coupled(nodes: Sequence[Any]) -> bool:
    """Whether samples of the batch depend on each other: BatchNorm in train mode needs one step for all."""
    return any("BatchNorm" in node.name() or "batch_norm" in node.name() for node in nodes)


def refuse_other_head(head: Callable[[Tensor], Tensor], model: nn.Module, f: Tensor, logits: Tensor, then: Any) -> None:
    """Raises ValueError unless `head` takes the layer's output to the model's logits."""
    with torch.no_grad(), _as_in_the_forward(model, then):
        got = head(f.detach())
    if not isinstance(got, Tensor) or got.shape != logits.shape:
        given = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
        raise ValueError(f"head must return the logits, shape {tuple(logits.shape)}, got {given}")
    error = (got.detach() - logits.detach()).float().norm() / logits.detach().float().norm().clamp_min(1e-30)
    bound = 1e-3 if f.dtype in (torch.float32, torch.float64) else 5e-2
    if not bool(error <= bound):
        raise ValueError(
            f"head(output of the layer) differs from the logits by {error.item():.1e} (relative L2): pass everything "
            "above the layer, and nothing else"
        )


def through_gradient(
    head: Callable[[Tensor], Tensor],
    model: nn.Module,
    f: Tensor,
    v: Tensor,
    logits: Tensor,
    target: Target,
    labels: Tensor | None,
    *,
    coupled: bool,
    conditions: Conditions,
    scale: Tensor | None = None,
) -> Tensor:
    """0-dim, of value 0 and with the gradient that the loss has through g.

    Args:
        head: from the layer's output to the logits.
        f: the layer's output in its own layout, any shape (B, ...).
        v: dP/dg, of f's shape.
        logits: of the main pass; "predicted" is decided there.
        coupled: one step for the whole batch.
        conditions: the random state and autocast of the main pass at the layer.
        scale: by which S was multiplied for g.
    """
    dims = tuple(range(f.ndim)) if coupled else tuple(range(1, f.ndim))
    length = v.detach().float().square().sum(dims, keepdim=True).sqrt()
    size = f.detach().float().square().sum(dims, keepdim=True).sqrt()
    still = length == 0
    eps = STEP[f.dtype] * size / torch.where(still, 1.0, length)
    offset = (torch.where(still, 0.0, eps) * v.detach()).to(f.dtype)
    weight = torch.where(still | (eps == 0), 0.0, 0.5 / torch.where(eps == 0, 1.0, eps)).flatten()
    chosen = None if callable(target) or target == "sum" else one_logit(logits, target, labels)
    sides = []
    for sign in (1.0, -1.0):
        with _as_in_the_forward(model, conditions):
            moved = head(f + sign * offset)
        if callable(target):
            scalars = per_sample(moved, target, labels)
        else:
            scalars = (moved if chosen is None else moved * chosen).flatten(1).sum(1)
        sides.append(scalars.to(weight.dtype))
    slope = ((sides[0] - sides[1]) * weight).sum()
    if scale is not None:
        slope = slope * scale
    return slope - slope.detach()


@contextlib.contextmanager
def _as_in_the_forward(model: nn.Module, conditions: Conditions) -> Iterator[None]:
    """The random numbers and autocast of the main pass; statistics and generators afterwards as before."""
    device = conditions.device
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        running_statistics.kept(running_statistics.tracking(model)),
        torch.autocast(device.type, conditions.autocast_dtype, enabled=conditions.autocast),
    ):
        torch.set_rng_state(conditions.cpu_state)
        if conditions.gpu_state is not None:
            torch.cuda.set_rng_state(conditions.gpu_state, device)
        yield


def head_nodes(logits: Tensor, f: Tensor) -> list[Any]:
    """The autograd nodes of the head in the main pass."""
    return nodes_between(get_gradient_edge(logits).node, [f])

"""The gradient of the loss through `g` without a second derivative: a central difference along `v = dP/dg`.

With S the attributed scalar and g = dS/df, the part of the loss's gradient that flows through g is
`v^T dg/dtheta = d/dtheta (v^T dS/df)`, and the bracket is the slope of S along v:

    D = sum_b (S_b(f_b + eps_b v_b) - S_b(f_b - eps_b v_b)) / (2 eps_b),    ||eps_b v_b|| = r ||f_b||

so that two more passes of the head, differentiated once, replace its second derivative. The error is of order
r^2 for a smooth head. At the kinks of a ReLU or a max-pooling it would be of order 1: there, both passes stay on the
side the main pass was on (see `kinks`), and functions that cannot be kept there are refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from pal_fast.attribution.graph import nodes_between
from pal_fast.attribution.kinks import Sides, hidden_among, kinks_among
from pal_fast.attribution.targets import Target, one_logit, per_sample
from pal_fast.capture import buffers
from pal_fast.capture.buffers import Buffers
from pal_fast.capture.captured import Conditions
from pal_fast.capture.model_run import eagerly
from pal_fast.messages import describe
from pal_fast.reference import widest_dtype

#: r, by the coarsest dtype that the head computes in: the rounding error of S grows as eps / r, truncation as r^2.
STEP = {torch.float64: 1e-4, torch.float32: 5e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}


def check_options(head: object, reduction: str) -> None:
    """Raises TypeError or ValueError for options that finite differences do not support."""
    if not callable(head):
        raise TypeError(
            "second_order='finite_difference' needs head=, a callable from the layer's output to the logits, got "
            f"{describe(head)}"
        )
    if reduction == "none":
        raise ValueError("second_order='finite_difference' needs reduction='mean' or 'sum', got 'none'")


def refuse_kinks(nodes: Sequence[Any]) -> None:
    """Raises RuntimeError if the nodes of a repeated pass have a kink or may hide one."""
    hidden = hidden_among(nodes)
    if hidden:
        raise RuntimeError(
            "second_order='finite_difference' is wrong for heads with kinks, and the graph does not show whether there "
            f"are any inside {', '.join(hidden)}: pass a head= that runs without torch.jit.script; declare a "
            "torch.autograd.Function whose derivative does not jump with YourFunction.smooth = True; otherwise use "
            "second_order='exact'"
        )
    found = kinks_among(nodes)
    if found:
        raise RuntimeError(
            f"second_order='finite_difference' is wrong for heads with kinks, and {', '.join(found)} cannot be kept on "
            "its side of them: use second_order='exact', or smooth activations (GELU, SiLU) and average pooling"
        )


def refuse_other_processes(nodes: Sequence[Any]) -> None:
    """Raises RuntimeError if samples depend on those of other processes: they would need a common step."""
    if any("SyncBatchNorm" in node.name() or "AllReduce" in node.name() for node in nodes):
        raise RuntimeError(
            "second_order='finite_difference' needs one step for all samples, but SyncBatchNorm couples the samples of "
            "all processes: use second_order='exact' with pal_fast.nn.convert_sync_batchnorm"
        )


def is_coupled(nodes: Sequence[Any]) -> bool:
    """Whether samples of the batch depend on each other: BatchNorm in train mode needs one step for all."""
    return any("BatchNorm" in node.name() or "batch_norm" in node.name() for node in nodes)


def refuse_other_head(
    head: Callable[[Tensor], Tensor], model: nn.Module, f: Tensor, logits: Tensor, then: Conditions
) -> None:
    """Raises ValueError unless `head` maps the layer's output to the model's logits."""
    with torch.no_grad(), _as_in_the_forward(model, then):
        got = head(f.detach().clone())  # the head may start with an in-place operation
    if not isinstance(got, Tensor) or got.shape != logits.shape:
        given = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
        raise ValueError(f"head must return the logits, shape {tuple(logits.shape)}, got {given}")
    error = _distance(got, logits)
    bound = 1e-3 if _coarsest(f, logits, then) in (torch.float32, torch.float64) else 5e-2
    if not bool(error <= bound):
        raise ValueError(
            f"head(output of the layer) differs from the logits by {error.item():.1e} (relative L2; rounding may "
            f"account for {bound:.0e}): head must be everything above the layer, and nothing else"
        )


def refuse_state(
    head: Callable[[Tensor], Tensor],
    model: nn.Module,
    f: Tensor,
    logits: Tensor,
    conditions: Conditions,
    following: Sequence[str],
) -> None:
    """Raises RuntimeError if the logits depend on the buffers `following`, which depend on f.

    A finite difference includes that dependence; the exact derivative does not.
    """
    if not following:
        return
    with torch.no_grad(), _as_in_the_forward(model, replace(conditions, buffers={})):
        again = head(f.detach().clone())
    if bool(_distance(again, logits) > 1e-6):
        raise RuntimeError(
            f"second_order='finite_difference' sees through the buffers {', '.join(following)}, which depend on the "
            "activations and enter the logits, while the exact derivative treats them as constants: use "
            "second_order='exact'"
        )


def _distance(got: Tensor, wanted: Tensor) -> Tensor:
    """0-dim, relative L2."""
    return (got.detach() - wanted.detach()).float().norm() / wanted.detach().float().norm().clamp_min(1e-30)


def through_gradient(
    head: Callable[[Tensor], Tensor],
    model: nn.Module,
    f: Tensor,
    v: Tensor,
    logits: Tensor,
    target: Target,
    labels: Tensor | None,
    *,
    nodes: Sequence[Any],
    conditions: Conditions,
    first: bool,
    scale: Tensor | None = None,
) -> Tensor:
    """A 0-dim tensor of value 0 whose gradient is the part of the loss's gradient that flows through g.

    Args:
        head: from the layer's output to the logits.
        f: the layer's output in its own layout, any shape (B, ...).
        v: dP/dg, of f's shape.
        logits: of the main pass, which also determines "predicted".
        nodes: the autograd nodes of the head in the main pass.
        conditions: the state of the main pass at the layer.
        first: whether to check for what makes the repeated passes wrong: remaining kinks, and state.
        scale: the factor of S with which g was taken.

    Raises: RuntimeError for these, and for samples that depend on those of other processes.
    """
    refuse_other_processes(nodes)
    hidden = hidden_among(nodes)
    coupled = bool(hidden) or is_coupled(nodes)  # a common step is correct in every case
    dims = tuple(range(f.ndim)) if coupled else tuple(range(1, f.ndim))
    length, size = _length(v.detach(), dims), _length(f.detach(), dims)
    still = (length == 0) | (size == 0)
    eps = torch.where(still, 0.0, STEP[_coarsest(f, logits, conditions)] * size / length.masked_fill(still, 1.0))
    dtype = torch.promote_types(f.dtype, torch.float32)
    offset = (eps.to(dtype) * v.detach()).to(f.dtype)
    weight = torch.where(still, 0.0, 0.5 / eps.masked_fill(still, 1.0)).to(dtype).flatten()
    chosen = None if callable(target) or target == "sum" else one_logit(logits, target, labels)
    sides = Sides() if hidden or kinks_among(nodes) else None
    if sides is not None:
        with torch.no_grad(), _as_in_the_forward(model, conditions), sides.recording():
            head(f.detach().clone())
    ends: list[Tensor] = []
    left: list[dict[nn.Module, Buffers]] = []
    for sign in (1.0, -1.0):
        start = f + sign * offset
        root = get_gradient_edge(start).node
        with _as_in_the_forward(model, conditions), sides.replaying() if sides else contextlib.nullcontext():
            moved = head(start)
            if first:
                left.append({module: buffers.held_by(module) for module in conditions.buffers})
        if first:
            repeated = nodes_between(get_gradient_edge(moved).node, [root])
            refuse_kinks(repeated)
            refuse_other_processes(repeated)  # a compiled part may have hidden them in the main pass
        if callable(target):
            scalars = per_sample(moved, target, labels)
        else:
            scalars = moved if chosen is None else moved * chosen
            scalars = scalars.flatten(1).sum(1) if scalars.ndim > 1 else scalars
        ends.append(scalars.to(weight.dtype))
    if first:
        refuse_state(head, model, f, logits, conditions, buffers.differing(model, *left))
    slope = ((ends[0] - ends[1]) * weight).sum()
    if scale is not None:
        slope = slope * scale
    return slope - slope.detach()


def _length(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The Euclidean norm over `dims`, which are kept. dP/dg grows as 1 / g, so its square may overflow float32."""
    dtype = widest_dtype(x.device)
    if dtype == torch.float64:
        return torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=dtype)
    unit = x.detach().abs().amax(dims, keepdim=True).to(dtype)
    unit = unit.masked_fill(unit == 0, 1.0)
    return torch.linalg.vector_norm(x / unit, dim=dims, keepdim=True, dtype=dtype) * unit


def _coarsest(f: Tensor, logits: Tensor, conditions: Conditions) -> torch.dtype:
    """The dtype of the largest rounding error in the head: under autocast a ViT's f is float32, but the head is not."""
    dtypes = {f.dtype, logits.dtype}
    if conditions.autocast is not None and f.dtype != torch.float64:  # autocast does not affect float64
        dtypes.add(conditions.autocast)
    return max(dtypes, key=STEP.__getitem__)


@contextlib.contextmanager
def _as_in_the_forward(model: nn.Module, conditions: Conditions) -> Iterator[None]:
    """Restores the random state, autocast and buffers of the main pass; on exit, buffers and generators are as before.
    Compiled parts run eagerly, so that their kinks are visible."""
    modules = [module for module in buffers.stateful(model) if module.training]
    device, cast = conditions.device, conditions.autocast
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        buffers.kept(modules, conditions.buffers),
        contextlib.nullcontext() if cast is None else torch.autocast(device.type, cast),
        eagerly(),
    ):
        torch.set_rng_state(conditions.cpu_state)
        if conditions.gpu_state is not None:
            torch.cuda.set_rng_state(conditions.gpu_state, device)
        yield


def head_nodes(logits: Tensor, f: Tensor) -> list[Any]:
    """The autograd nodes of the head in the main pass."""
    return nodes_between(get_gradient_edge(logits).node, [f])

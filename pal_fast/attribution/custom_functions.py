"""Third-party `torch.autograd.Function`s above a layer, whose backward has to be differentiable.

In the second derivative PyTorch treats as a constant whatever a backward computes outside autograd (in a kernel, in
NumPy, under `torch.no_grad`) or from values kept by the forward that are neither inputs nor outputs. The gradients are
then wrong without an error. Most such cases show in the graph of what the backward returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from pal_fast import reference
from pal_fast.attribution import distributed
from pal_fast.attribution.graph import nodes_from
from pal_fast.attribution.targets import attributed_gradients

_FIRST_ORDER = (
    "write its backward in differentiable PyTorch (torch.autograd.gradgradcheck verifies it), choose a layer above it, "
    "or use second_order='finite_difference' with head="
)


def among(nodes: Sequence[Any]) -> list[Any]:
    """The nodes that belong to Python Functions of neither PyTorch nor this package."""
    return [node for node in nodes if _is_third_party(type(node))]


def _is_third_party(kind: type) -> bool:
    function = getattr(kind, "_forward_cls", None)
    return function is not None and function.__module__.partition(".")[0] not in ("torch", "pal_fast")


def examine(model: nn.Module, logits: Tensor, output: Tensor, nodes: Sequence[Any]) -> tuple[str, str]:
    """Differentiates the logits once more and examines what the backward of each Function among `nodes` returns.

    Args:
        output: the layer's output.
        nodes: the autograd nodes between it and the logits.

    Returns: why the layer cannot be attributed, or ""; and what may be wrong with it, or "".
    """
    functions = among(nodes)
    if not functions:
        return "", ""
    on_path = {*nodes, get_gradient_edge(output).node}
    constant: dict[str, None] = {}
    linear: dict[str, None] = {}
    handles = [node.register_hook(_hook_for(node, on_path, constant, linear)) for node in functions]
    # The seed requires a gradient, and therefore so does every gradient that a node receives.
    seed = torch.ones_like(logits).requires_grad_()

    def weighted(logits: Tensor, _: Tensor | None) -> Tensor:
        return (logits * seed).reshape(logits.shape[0], -1).sum(1)

    start = distributed.before_sink(logits) if distributed.in_process_group() else None
    try:
        with distributed.parameters_kept(model):
            attributed_gradients(logits, [output], weighted, None, create_graph=True, start=start)
    finally:
        for handle in handles:
            handle.remove()
    refusal = warning = ""
    if constant:
        refusal = (
            f"{' and '.join(constant)} lies between it and the logits, and its backward cannot be differentiated: "
            f"{_FIRST_ORDER}"
        )
    if linear:
        warning = (
            f"for autograd the derivative of {' and '.join(linear)} is independent of its input, which is right "
            "only for a linear function; one that saves more than its inputs and outputs, or keeps them outside "
            "ctx.save_for_backward, lacks a term of the second derivative: try torch.autograd.gradgradcheck"
        )
    return refusal, warning


def _hook_for(
    node: Any, on_path: set[Any], constant: dict[str, None], linear: dict[str, None]
) -> Callable[[tuple[Tensor | None, ...], tuple[Tensor | None, ...]], None]:
    name = type(node)._forward_cls.__name__

    def hook(returned: tuple[Tensor | None, ...], given: tuple[Tensor | None, ...]) -> None:
        if not any(g is not None and g.requires_grad for g in given):
            return
        for g, (below, _) in zip(returned, node.next_functions, strict=False):
            if g is None or below not in on_path or not bool((g != 0).any()):
                continue
            if (
                g.grad_fn is None or g.grad_fn.name() == "torch::autograd::Error"
            ):  # @once_differentiable makes the latter
                constant[name] = None
            elif not _reaches_input(g, node, given) and not _scales(g, given):
                linear[name] = None

    return hook


def _reaches_input(g: Tensor, node: Any, given: Sequence[Tensor | None]) -> bool:
    """Whether g, which the backward returned, also depends on the Function's inputs or outputs."""
    assert g.grad_fn is not None
    own = {node, *(below for below, _ in node.next_functions if below is not None)}
    ends = {e.grad_fn for e in given if e is not None}
    return g.grad_fn not in ends and any(found in own for found in nodes_from(g.grad_fn, ends))


def _scales(g: Tensor, given: Sequence[Tensor | None]) -> bool:
    """Whether g is a received gradient times a number, or masked: gradient reversal, straight-through estimators,
    masks."""
    for e in given:
        if e is not None and e.shape == g.shape:
            dtype = reference.widest_dtype(g.device)
            values, before = g.detach().to(dtype), e.detach().to(dtype)
            ratio = (values * before).sum() / before.where(values != 0, 0).square().sum()
            if bool(((values - ratio * before).abs() <= 1e-2 * values.abs()).where(values != 0, True).all()):
                return True
    return False

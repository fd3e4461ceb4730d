"""`torch.autograd.Function`s of others above a layer, whose backward is differentiated as PyTorch's own are.

PyTorch takes a backward's word: what it computes outside autograd (a kernel of its own, NumPy, `torch.no_grad`), or
from values that the forward kept and that are neither inputs nor outputs, is a constant in the second derivative. The
gradients are then wrong without an error. What a backward returns shows most of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from pal_fast.attribution import distributed
from pal_fast.attribution.graph import nodes_from
from pal_fast.attribution.targets import attributed_gradients

_FIRST_ORDER = (
    "write its backward in differentiable PyTorch (torch.autograd.gradgradcheck tells), choose a layer above it, or "
    "use second_order='finite_difference' with head="
)


def among(nodes: Sequence[Any]) -> list[Any]:
    """Those nodes that are Functions written in Python, and neither PyTorch's nor this package's."""
    return [node for node in nodes if _is_of_others(type(node))]


def _is_of_others(kind: type) -> bool:
    function = getattr(kind, "_forward_cls", None)
    return function is not None and function.__module__.partition(".")[0] not in ("torch", "pal_fast")


def examine(model: nn.Module, logits: Tensor, output: Tensor, nodes: Sequence[Any]) -> tuple[str, str]:
    """Differentiates the logits once more, and looks at what the backward of each Function among `nodes` returns.

    Args:
        output: of the layer.
        nodes: those between it and the logits.

    Returns: why the layer cannot be attributed, "" if nothing speaks against it; and what may be wrong, or "".
    """
    functions = among(nodes)
    if not functions:
        return "", ""
    on_the_way = {*nodes, get_gradient_edge(output).node}
    constant: dict[str, None] = {}
    linear: dict[str, None] = {}
    handles = [node.register_hook(_looker(node, on_the_way, constant, linear)) for node in functions]
    # What the gradient starts with requires a gradient: so does, then, whatever each node is given.
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
    refused = told = ""
    if constant:
        refused = (
            f"{' and '.join(constant)} lies between it and the logits, and its backward cannot be differentiated: "
            f"{_FIRST_ORDER}"
        )
    if linear:
        told = (
            f"for autograd the derivative of {' and '.join(linear)} is independent of its input, which is right for a "
            "linear function alone; one that saves more than its inputs and outputs, or keeps them outside "
            "ctx.save_for_backward, lacks a term of the second derivative: try torch.autograd.gradgradcheck"
        )
    return refused, told


def _looker(
    node: Any, on_the_way: set[Any], constant: dict[str, None], linear: dict[str, None]
) -> Callable[[tuple[Tensor | None, ...], tuple[Tensor | None, ...]], None]:
    name = type(node)._forward_cls.__name__

    def look(returned: tuple[Tensor | None, ...], given: tuple[Tensor | None, ...]) -> None:
        if not any(g is not None and g.requires_grad for g in given):
            return
        for g, (below, _) in zip(returned, node.next_functions, strict=False):
            if g is None or below not in on_the_way or not bool((g != 0).any()):
                continue
            if g.grad_fn is None or g.grad_fn.name() == "torch::autograd::Error":  # the latter of @once_differentiable
                constant[name] = None
            elif not _reaches_input(g, node, given) and not _scales(g, given):
                linear[name] = None

    return look


def _reaches_input(g: Tensor, node: Any, given: Sequence[Tensor | None]) -> bool:
    """Whether what the backward returned, g, is a function of the Function's inputs or outputs, too."""
    assert g.grad_fn is not None
    own = {node, *(below for below, _ in node.next_functions if below is not None)}
    ends = {e.grad_fn for e in given if e is not None}
    return g.grad_fn not in ends and any(found in own for found in nodes_from(g.grad_fn, ends))


def _scales(g: Tensor, given: Sequence[Tensor | None]) -> bool:
    """Whether g is a gradient that was given, times one number or zero: gradient reversal, straight-through estimators,
    masks."""
    for e in given:
        if e is not None and e.shape == g.shape:
            values, before = g.detach().double(), e.detach().double()
            ratio = (values * before).sum() / before.where(values != 0, 0).square().sum()
            if bool(((values - ratio * before).abs() <= 1e-2 * values.abs()).where(values != 0, True).all()):
                return True
    return False

"""Checks of a layer in the graph of the logits, at a loss's first call: raises for what cannot work, and warns once of
what behaves differently than it appears."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from pal_fast.attribution import custom_functions, distributed, graph
from pal_fast.attribution.targets import Target, attributed_gradients, normalised_by_values, sums_alike
from pal_fast.capture.captured import Captured
from pal_fast.capture.layer_names import plain_name
from pal_fast.warn import warn

#: The gradient of the rows' sums counts as zero below this share of one class's gradient: in bfloat16 rounding leaves a
#: few 2^-8 of it.
VANISHES = 0.05
_CONSTANT_SUM = (
    "the logits of every sample add up to the same number, so the gradient of their sum is zero except for rounding, "
    "and nothing is attributed: use target='label' or 'predicted', or pass the scores before the operation that makes "
    "their sum constant (a softmax times a number, subtracting the mean)"
)
NORM_OF_ZERO = (
    "look for the normalisation of a zero vector or a square root of zero above the layer (swin_v2's cosine attention "
    "does that), and choose a later layer"
)


def check(
    model: nn.Module, logits: Tensor, taken: Sequence[Captured], target: Target, *, differentiates: bool, exact: bool
) -> None:
    """Refuses what cannot work and warns of what behaves differently than it appears. Walks the graph once, and reads
    the vector norms in it and the logits.

    Args:
        differentiates: whether the logits are differentiated with respect to the layers.
        exact: whether that gradient is differentiated again.

    Raises: ValueError for probabilities and for logits whose sum is constant; TypeError for DataParallel and FSDP1;
        RuntimeError for parts above the layer without a second derivative, naming the remedy.
    """
    distributed.refuse_unsound(model)
    for record in taken:
        if record.changed_in_place:
            warn(in_place(record.name))
    if not differentiates:
        return
    for record in taken:
        assert record.output is not None
        refuse_unsound_path(model, logits, record.name, record.output, exact=exact)
    refuse_probabilities(model, logits, taken)
    if target == "sum":
        refuse_constant_sum(model, logits, taken)


def refuse_probabilities(model: nn.Module, logits: Tensor, taken: Sequence[Captured]) -> None:
    """Raises ValueError for the output of a softmax or log-softmax, even if further operations follow it.

    Detected by the values and, if they match, by the property that makes such an output useless as a target: at the
    layers the gradient of its rows' sums is zero (for a log-softmax, of the rows weighted by their exponentials), while
    that of a single class is not.
    """
    suspect = normalised_by_values(logits)
    if suspect is None:
        return
    outputs = [record.output for record in taken if record.output is not None]
    if _vanishes(model, logits, outputs, suspect.weights, VANISHES):
        raise ValueError(suspect.message)


def refuse_constant_sum(model: nn.Module, logits: Tensor, taken: Sequence[Captured]) -> None:
    """Raises ValueError if every sample's logits have the same sum and its gradient vanishes while that of one class
    does not: only rounding is left, and the loss does not depend on its scale."""
    if not sums_alike(logits):
        return
    outputs = [record.output for record in taken if record.output is not None]
    share = 1e-4 if logits.dtype in (torch.float32, torch.float64) else VANISHES
    if _vanishes(model, logits, outputs, torch.ones_like(logits), share):
        raise ValueError(_CONSTANT_SUM)


def _vanishes(model: nn.Module, logits: Tensor, outputs: Sequence[Tensor], weights: Tensor, share: float) -> bool:
    """Whether the gradient of the weighted sum of logits is below a share of that of the first class, in any layer's
    largest element."""
    first_class = torch.zeros_like(weights)
    first_class[:, 0] = weights[:, 0]
    start = distributed.before_sink(logits) if distributed.in_process_group() else None

    def largest(weights: Tensor) -> float:
        def weighted(logits: Tensor, _: Tensor | None) -> Tensor:
            return (logits * weights).sum(1)

        found = attributed_gradients(logits, outputs, weighted, None, create_graph=False, start=start)
        return max((float(g.abs().max()) for g in found if g is not None and g.numel()), default=0.0)

    with distributed.parameters_kept(model):
        of_one = largest(first_class)
        return of_one > 0 and largest(weights) < share * of_one


def refuse_unsound_path(model: nn.Module, logits: Tensor, name: str, output: Tensor, *, exact: bool) -> None:
    """Raises RuntimeError if the path from the logits to the layer is unsound, or, if `exact`, if a node on it has no
    second derivative."""
    nodes = _path_nodes(logits, output)
    if distributed.in_process_group():
        distributed.refuse_sink_between(nodes)
    if not exact:
        return
    reason = graph.refusal(nodes)
    if not reason and not nodes and get_gradient_edge(output).node.name().startswith("CompiledFunction"):
        reason = graph.refusal([get_gradient_edge(output).node])
    doubtful = ""
    if not reason:
        reason, doubtful = custom_functions.examine(model, logits, output, nodes)
    if reason:
        raise RuntimeError(f"layer {name!r} cannot be attributed: {reason}")
    if doubtful:
        warn(f"layer {name!r}: {doubtful}")
    if graph.takes_norm_of_zero(nodes):
        warn(f"layer {name!r}: the second derivative will not be finite: {NORM_OF_ZERO}")


def doubt(model: nn.Module, logits: Tensor, output: Tensor) -> str:
    """What may be wrong with the second derivatives between the layer's output and the logits, or ""."""
    return custom_functions.examine(model, logits, output, _path_nodes(logits, output))[1]


def _path_nodes(logits: Tensor, output: Tensor) -> list[Any]:
    """The autograd nodes between the layer's output and where the logits are differentiated."""
    start = distributed.before_sink(logits) if distributed.in_process_group() else logits
    root = get_gradient_edge(start).node if isinstance(start, Tensor) else start.node
    return graph.nodes_between(root, [output])


def without_path(logits: Tensor, name: str, output: Tensor) -> str:
    """Why there is no path from the logits to the output of layer `name`."""
    if output.grad_fn is not None and output.grad_fn is logits.grad_fn:
        reason = graph.refusal([output.grad_fn])  # one compiled part returned both
        if reason:
            return f"layer {name!r} cannot be attributed: {reason}"
    return (
        f"the logits do not depend on the output of layer {name!r} in the latest forward: pass the logits of that very "
        "forward, and a layer that they depend on"
    )


def in_place(name: str) -> str:
    return (
        f"the output of layer {name!r} is overwritten in place by a later layer, e.g. ReLU(inplace=True), and the "
        "overwritten value is attributed; name that later layer to make this explicit, or set inplace=False"
    )


def unreached(model: nn.Module, name: str) -> str:
    earlier = _block_before(model, name)
    return (
        f"the gradient of the logits at layer {name!r} is zero everywhere, so the loss has no effect: in a ViT "
        "that pools its class token the last block is such a layer (choose an earlier one"
        f"{f', such as {earlier!r}' if earlier else ''}), and so is any layer while the classifier's weights are all "
        "zero (torchvision's ViT starts like that; initialise them)"
    )


def _block_before(model: nn.Module, name: str) -> str:
    """The name of the block before block `name` in the same stack of blocks; "" if there is none."""
    named = {plain_name(full): module for full, module in model.named_modules()}
    parent, _, last = name.rpartition(".")
    if name not in named or parent not in named:
        return ""
    before = ""
    for child, module in named[parent].named_children():
        if child == last:
            break
        if type(module) is type(named[name]):
            before = f"{parent}.{child}" if parent else child
    return before

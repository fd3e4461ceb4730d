"""The autograd nodes between a layer's output and the logits, and which of them have no second derivative."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

_MATH = (
    "call the model itself, so that its hooks can switch attention to the MATH kernel, or run its forward inside "
    "torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
)
_OWN_ATTENTION = (
    "switch the model's attention to scaled_dot_product_attention, or use second_order='finite_difference' with head="
)
_FIRST_ORDER = "choose a layer above it, or use second_order='finite_difference' with head="

#: Part of a node's name -> what the node is, and the remedy. The first match wins.
WITHOUT_SECOND_DERIVATIVE: dict[str, tuple[str, str]] = {
    "CompiledFunction": (
        "a part compiled with torch.compile",
        "compile only the layers below it (pal_fast.compiled.compile_body), or the whole step "
        "(pal_fast.compiled.compile_step)",
    ),
    "ScaledDotProduct": ("a fused attention kernel", _MATH),
    "FlashAttn": ("a kernel of flash-attn", _OWN_ATTENTION),
    "fMHA": ("an attention kernel of xformers", _OWN_ATTENTION),
    "CheckpointFunction": (
        "a segment under reentrant activation checkpointing",
        "checkpoint it with use_reentrant=False",
    ),
    "SyncBatchNorm": (
        "torch.nn.SyncBatchNorm",
        "call pal_fast.nn.convert_sync_batchnorm(model) before wrapping the model",
    ),
    "HardsigmoidBackward": (
        "Hardsigmoid",
        "call pal_fast.nn.replace_hardsigmoid(model), or write F.hardsigmoid(x) as F.relu6(x + 3) / 6",
    ),
    "DeformConv": ("deform_conv2d", _FIRST_ORDER),
    "deform_conv": ("deform_conv2d", _FIRST_ORDER),
    "ROIAlign": ("roi_align", _FIRST_ORDER),
    "roi_align": ("roi_align", _FIRST_ORDER),
    "ROIPool": ("roi_pool", "choose a layer above it"),  # a maximum: a kink
    "roi_pool": ("roi_pool", "choose a layer above it"),
    "CudnnRnn": ("a cuDNN recurrent layer", "run it inside torch.backends.cudnn.flags(enabled=False)"),
}


def nodes_between(root: Any, ends: Sequence[Any]) -> list[Any]:
    """The autograd nodes on paths from `root` (a node) down to `ends` (tensors or nodes), excluding the ends' nodes."""
    last = {get_gradient_edge(end).node if isinstance(end, Tensor) else end for end in ends}
    parents: dict[Any, list[Any]] = {root: []}
    pending = [] if root in last else [root]
    while pending:
        node = pending.pop()
        for child, _ in node.next_functions:
            if child is None:
                continue
            if child in parents:
                parents[child].append(node)
            else:
                parents[child] = [node]
                if child not in last:
                    pending.append(child)
    found: dict[Any, None] = {}
    pending = [node for node in last if node in parents]
    while pending:
        for parent in parents[pending.pop()]:
            if parent not in found:
                found[parent] = None
                pending.append(parent)
    return list(found)


def refusal(nodes: Sequence[Any]) -> str:
    """One sentence about the first node without a second derivative, with the remedy; "" if no such node is known."""
    names = {node.name() for node in nodes}
    for part, (what, way_out) in WITHOUT_SECOND_DERIVATIVE.items():
        if any(part in name for name in names):
            return f"{what} lies between it and the logits and has no second derivative: {way_out}"
    return ""


def holds(root: Any, part: str) -> bool:
    """Whether any node at or below `root` has `part` in its name."""
    return any(part in node.name() for node in nodes_from(root))


def nodes_from(root: Any, ends: Iterable[Any] = ()) -> Iterator[Any]:
    """The node `root` and all nodes below it, except the nodes `ends` and what can only be reached through them."""
    seen, pending = {root, *ends}, [root]
    while pending:
        node = pending.pop()
        yield node
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                pending.append(child)


def takes_norm_of_zero(nodes: Sequence[Any]) -> bool:
    """Whether any of `nodes` took the norm of a zero vector, whose second derivative is NaN. Reads values."""
    # Tensors packed by a saved-tensor hook (activation checkpointing) are not recomputed for this.
    norms = [
        getattr(node._raw_saved_result, "data", None)
        for node in nodes
        if node.name().startswith("LinalgVectorNormBackward")
    ]
    return any(bool((norm == 0).any()) for norm in norms if isinstance(norm, Tensor))


#: What `prepare_head` can replace -> part of the name of PyTorch's node for it (for attention: of its MATH kernel).
_PREPARED = {"BatchNorm": "BatchNorm", "LayerNorm": "NativeLayerNorm", "attention": "SafeSoftmax"}


def slow_parts(nodes: Sequence[Any]) -> list[str]:
    """Notes on `nodes` with a disproportionately slow second derivative, and what to do about them."""
    convolutions = [node for node in nodes if node.name() == "ConvolutionBackward0"]
    grouped = sum(node._saved_groups > 1 for node in convolutions)
    notes = []
    if grouped:
        notes.append(f"{grouped} grouped convolutions above the layer, whose second derivative runs group by group")
    names = [node.name() for node in nodes]
    counts = {what: sum(part in name for name in names) for what, part in _PREPARED.items()}
    found = [f"{count} {what}{'s' if count > 1 else ''}" for what, count in counts.items() if count]
    if found:
        listed = " and ".join([", ".join(found[:-1]), found[-1]] if found[1:] else found)
        way_out = "pal_fast.nn.prepare_head(model, layer) makes their second derivative cheaper"
        notes.append(f"{listed} above the layer: {way_out}")
    return notes

"""Takes what was captured in the forward that produced the logits, or raises with the reason why there is nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from pal_fast import _checks
from pal_fast.attribution import graph
from pal_fast.attribution.graph_checks import without_path
from pal_fast.capture.capture import ONE_RUN, Capture
from pal_fast.capture.captured import Captured
from pal_fast.capture.layer_names import is_compiled


def take(model: nn.Module, logits: Any, capture: Capture) -> list[Captured]:
    """`capture.take()`, with a more specific reason if nothing was captured because of torch.compile.

    Raises: NotReadyError, also if a run of a layer superseded another and the logits do not depend on the latest run
        alone.
    """
    try:
        taken = capture.take()
    except RuntimeError:
        reason = why_hooks_are_silent(model, logits)
        if reason:
            raise _checks.NotReadyError(reason) from None
        raise
    transformed = torch._C._functorch.peek_interpreter_stack() is not None  # transforms have graphs of their own
    for record in taken:
        if record.superseded and isinstance(logits, Tensor) and logits.requires_grad and not transformed:
            _refuse_other_runs(logits, record)
    return taken


def _refuse_other_runs(logits: Tensor, record: Captured) -> None:
    assert record.output is not None
    nodes = set(graph.nodes_from(get_gradient_edge(logits).node))
    on_latest = get_gradient_edge(record.output).node in nodes
    on_earlier = any(record.mark in node.metadata for node in nodes)
    if on_latest and on_earlier:
        raise _checks.NotReadyError(
            f"layer {record.name!r} ran more than once on the way to these logits, so its output is ambiguous: "
            f"{ONE_RUN}"
        )
    if on_earlier:
        raise _checks.NotReadyError(
            f"the logits depend on an earlier run of layer {record.name!r} and not on its latest: call the loss before "
            "the layer runs again"
        )
    if not on_latest:
        raise _checks.NotReadyError(without_path(logits, record.name, record.output))


def why_hooks_are_silent(model: nn.Module, logits: Any) -> str:
    """Why the layer's hook did not fire, if torch.compile is the cause; "" otherwise."""
    compiled = any(
        is_compiled(module) or getattr(module, "_compiled_call_impl", None) is not None for module in model.modules()
    )
    if isinstance(logits, Tensor) and logits.grad_fn is not None:
        compiled = compiled or graph.holds(logits.grad_fn, "CompiledFunction")
    if not compiled or not model.training:
        return ""
    return (
        "the layer's hook has not fired, because torch.compile does not see hooks that are added after the first "
        "compiled call: construct the PALLoss before that call and compile only the layers below it "
        "(pal_fast.compiled.compile_body), or compile the whole step (pal_fast.compiled.compile_step)"
    )

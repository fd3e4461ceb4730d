"""Support for DistributedDataParallel and FSDP in a loss that takes a gradient inside the step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.nn.parallel import DistributedDataParallel

_SINK = "_DDPSinkBackward"
#: What `torch.distributed.is_initialized` reads; None in a build of PyTorch without it.
_GROUPS: Any = torch.distributed.GroupMember if torch.distributed.is_available() else None


def in_process_group() -> bool:
    """Whether this process belongs to a process group."""
    return _GROUPS is not None and _GROUPS.WORLD is not None


def refuse_unsound(model: nn.Module) -> None:
    """Raises TypeError for wrappers in which an attribution loss cannot work, naming the one that can."""
    for module in model.modules():
        if isinstance(module, nn.DataParallel):
            raise TypeError(
                "model must not contain DataParallel, whose replicas do not share a graph; use DistributedDataParallel"
            )
        if in_process_group() and isinstance(module, _fsdp1()):
            raise TypeError(
                "model must not contain FullyShardedDataParallel (FSDP1), which frees parameters that the second "
                "derivative needs; use torch.distributed.fsdp.fully_shard"
            )


def refuse_sharded(model: nn.Module) -> None:
    """Raises TypeError for fully_shard, whose parameters autograd does not see."""
    if any(_is_fully_sharded(module) for module in model.modules()):
        raise TypeError(
            "model must not be under fully_shard, whose parameters autograd does not see: call pal.check before it"
        )


@contextlib.contextmanager
def reducers_aside(model: nn.Module) -> Iterator[None]:
    """Inside, every DistributedDataParallel in `model` runs only its network, including the network's hooks.

    For a forward whose backward pass the reducer must not wait for: it neither broadcasts buffers, in which the other
    processes would have to take part, nor prepares a reduction, which under static_graph=True happens only once.
    """
    wrappers: list[Any] = [module for module in model.modules() if isinstance(module, DistributedDataParallel)]
    before = [vars(wrapper).get("forward") for wrapper in wrappers]
    for wrapper in wrappers:
        wrapper.forward = wrapper.module.__call__
    try:
        yield
    finally:
        for wrapper, forward in zip(wrappers, before, strict=True):
            del wrapper.forward
            if forward is not None:
                wrapper.forward = forward


def before_sink(logits: Tensor) -> GradientEdge | Tensor:
    """Where to differentiate the logits of a model under DDP: below the node that DDP adds to its output.

    Under static_graph=True that node would take the inner gradient for the backward pass, and the gradients of the
    first step would never be reduced.
    """
    node = logits.grad_fn
    if node is not None and node.name() == _SINK:
        below, number = node.next_functions[logits.output_nr]
        assert below is not None
        return GradientEdge(below, number)
    return logits


def refuse_sink_between(nodes: Sequence[Any]) -> None:
    """Raises RuntimeError if DDP's output node is between the layer and logits that are not DDP's own output."""
    if any(node.name() == _SINK for node in nodes):
        raise RuntimeError(
            "the logits were computed from the output of DistributedDataParallel (static_graph or "
            "find_unused_parameters), whose output node must not run backward twice: pass the very tensor that the "
            "wrapped model returned, and express a function of it as a callable target"
        )


class _Attach(torch.autograd.Function):
    """`loss`, with a gradient of exactly zero for `logits`, so that every parameter below them receives a gradient."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (logits,) = ctx.saved_tensors
        return gradient, torch.zeros_like(logits)


def reaching_all_parameters(loss: Tensor, logits: Tensor) -> Tensor:
    """The loss, attached to `logits`: DDP waits for a gradient of every parameter, and the loss by itself has none
    for, say, the last bias."""
    attached: Tensor = _Attach.apply(loss, logits)
    return attached


@contextlib.contextmanager
def parameters_kept(model: nn.Module) -> Iterator[None]:
    """Around the inner gradient: stops FSDP2 from freeing parameters and reducing gradients.

    The second derivative still needs them; the backward pass of the loss itself frees and reduces as usual.
    """
    sharded: list[Any] = [module for module in model.modules() if _is_fully_sharded(module)]
    states = [module._get_fsdp_state() for module in sharded]
    if not states:
        yield
        return
    # FSDP2 has only public setters; the user's settings must be read from its parameter groups to be restored.
    groups = [group for state in states for group in _parameter_groups(state)]
    before = [(group.reshard_after_backward, group.reduce_grads) for group in groups]
    last = [state._state_ctx.is_last_backward for state in states]
    for group in groups:
        group.reshard_after_backward = group.reduce_grads = False
    for state in states:
        state._state_ctx.is_last_backward = False
    try:
        yield
    finally:
        for group, (reshard, reduce_grads) in zip(groups, before, strict=True):
            group.reshard_after_backward, group.reduce_grads = reshard, reduce_grads
        for state, was_last in zip(states, last, strict=True):
            state._state_ctx.is_last_backward = was_last


def _is_fully_sharded(module: nn.Module) -> bool:
    if not torch.distributed.is_available():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def _fsdp1() -> type:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel


def _parameter_groups(state: Any) -> list[Any]:
    groups = getattr(state, "_fsdp_param_groups", None)  # a list in 2.13; releases without it have a single one
    if groups is None:
        groups = [state._fsdp_param_group]
    return [group for group in groups if group is not None]

"""Keeps running statistics (BatchNorm's, InstanceNorm's) out of passes that repeat a forward.

Non-reentrant checkpointing recomputes a segment in every backward pass; an attribution loss has two of them, so
that a BatchNorm in the segment would count each batch three times. The first-order engine runs the head again,
too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


def tracking(model: nn.Module) -> list[nn.Module]:
    """The modules of `model` that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _NormBase) and m.track_running_stats]


@contextlib.contextmanager
def kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, forwards of `modules` update copies of their running statistics, dropped at the end."""
    real = [(module, _swap_in_copies(module)) for module in modules]
    try:
        yield
    finally:
        for module, buffers in real:
            module._buffers.update(buffers)


def _swap_in_copies(module: nn.Module) -> dict[str, Tensor | None]:
    buffers = dict(module._buffers)
    module._buffers.update({name: None if b is None else b.clone() for name, b in buffers.items()})
    return buffers


class CheckpointedStatistics:
    """Finds, in one forward, the normalisation layers inside checkpointed segments, and guards them from then on.

    A layer outside such a segment loses its probe after that forward, so that it costs nothing.
    """

    def __init__(self, model: nn.Module, hook: type) -> None:
        """`hook` wraps a callable for `register_forward_hook` (see `capture.Hook`)."""
        self._hook = hook
        self._probes = [m.register_forward_pre_hook(hook(self._probe)) for m in tracking(model)]
        self._guards: list[Any] = []
        self._guarded: set[nn.Module] = set()
        self._real: dict[nn.Module, dict[str, Tensor | None]] = {}

    def stop_probing(self) -> None:
        """After the model's first forward. Idempotent."""
        for handle in self._probes:
            handle.remove()
        self._probes = []

    def remove(self) -> None:
        self.stop_probing()
        for handle in self._guards:
            handle.remove()
        self._guards = []

    def _probe(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling() or module in self._guarded or not _in_checkpointed_segment():
            return
        self._guarded.add(module)
        self._guards.append(module.register_forward_pre_hook(self._hook(self._before)))
        self._guards.append(module.register_forward_hook(self._hook(self._after), always_call=True))

    def _before(self, module: nn.Module, args: Any) -> None:
        if module.training and not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            self._real[module] = _swap_in_copies(module)

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        buffers = self._real.pop(module, None)
        if buffers is not None:
            module._buffers.update(buffers)


def _in_checkpointed_segment() -> bool:
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return bool(hooks) and getattr(hooks[0], "__module__", "") == "torch.utils.checkpoint"

"""Recomputations of activation checkpointing that leave no trace and choose the kernels of the forward.

Non-reentrant checkpointing recomputes a segment in every backward pass, and an attribution loss has two of them: a
BatchNorm in the segment would count each batch three times, and attention above the layer, which ran with the MATH
kernel in the forward, would be recomputed with another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pal_fast.attention import MathAttention
from pal_fast.running_statistics import swap_in_copies, tracking


class CheckpointedSegments:
    """Finds, in one forward, the modules that run in checkpointed segments, and guards their recomputations.

    The modules outside such segments lose their probes after that forward, so that they cost nothing.
    """

    def __init__(self, model: nn.Module, hook: Callable[..., Any], above: Callable[[], bool]) -> None:
        """
        Args:
            hook: wraps a callable for `register_forward_hook` (see `capture.Hook`).
            above: whether the forward is past the attributed layer, with attention switched.
        """
        self._hook, self._above = hook, above
        self._names = {module: name for name, module in model.named_modules()}
        self._tracking = set(tracking(model))
        # Scripted modules take no hooks; what is called inside them cannot be a checkpoint.
        self._probes = [
            m.register_forward_pre_hook(hook(self._probe))
            for m in self._names
            if not isinstance(m, torch.jit.ScriptModule)
        ]
        self._guards: list[Any] = []
        self._with_math: dict[nn.Module, MathAttention] = {}
        self._real: dict[nn.Module, dict[str, Tensor | None]] = {}
        self._guarded: set[nn.Module] = set()

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
        keeps_statistics = module in self._tracking
        runs_with_math = self._above() and not self._lies_within_one_with_math(module)
        if runs_with_math:
            self._with_math[module] = MathAttention()
        if keeps_statistics or runs_with_math:
            self._guarded.add(module)
            self._guards.append(module.register_forward_pre_hook(self._hook(self._before)))
            self._guards.append(module.register_forward_hook(self._hook(self._after), always_call=True))

    def _lies_within_one_with_math(self, module: nn.Module) -> bool:
        name = self._names[module]
        return any(name.startswith(f"{self._names[other]}.") for other in self._with_math)

    def _before(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
            return
        if module in self._with_math:
            self._with_math[module].enter()
        if module in self._tracking and module.training:
            self._real[module] = swap_in_copies(module)

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if module in self._with_math and not torch.compiler.is_compiling():
            self._with_math[module].leave()
        buffers = self._real.pop(module, None)
        if buffers is not None:
            module._buffers.update(buffers)


def _in_checkpointed_segment() -> bool:
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return bool(hooks) and getattr(hooks[0], "__module__", "") == "torch.utils.checkpoint"

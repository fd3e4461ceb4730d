"""Recomputations of activation checkpointing that leave no trace and choose the kernels of the forward.

Non-reentrant checkpointing recomputes a segment in every backward pass, and an attribution loss has two of them: a
BatchNorm in the segment would count each batch three times, and attention above the layer, which ran with the MATH
kernel in the forward, would be recomputed with another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pal_fast.attention import MathAttention
from pal_fast.buffers import Buffers, put_back, swap_in_copies, tracking


class CheckpointedSegments:
    """Finds, in one forward, the modules that run in checkpointed segments, and guards their recomputations.

    The modules outside such segments lose their probes after that forward, so that they cost nothing. Where running
    statistics change between two forwards, checkpointing may have been switched on since: the next forward is probed
    again.
    """

    #: How many probed forwards in a row may find nothing new: DDP, for one, writes statistics between forwards.
    VAIN = 8

    def __init__(
        self, model: nn.Module, hook: Callable[..., Any], running: Callable[[], bool], above: Callable[[], bool]
    ) -> None:
        """
        Args:
            hook: wraps a callable for `register_forward_hook` (see `capture.Hook`).
            running: whether a forward of the model with gradients is under way.
            above: whether it is past the attributed layer, with attention switched.
        """
        self._hook, self._running, self._above = hook, running, above
        self._names = {module: name for name, module in model.named_modules()}
        self._tracking = dict.fromkeys(tracking(model))
        # BatchNorm's own kernel writes running_mean unseen, InstanceNorm does not count batches.
        self._watched = [
            (m._buffers, "num_batches_tracked" if isinstance(m, _BatchNorm) else "running_mean") for m in self._tracking
        ]
        self._probes: list[Any] = []
        self._guards: list[Any] = []
        self._left = self.VAIN
        self._versions: list[int] = []
        self._with_math: dict[nn.Module, MathAttention] = {}
        self._real: dict[nn.Module, Buffers] = {}
        self._guarded: set[nn.Module] = set()
        #: The modules that ran in the latest forward with gradients; None if it was not probed.
        self.ran: set[nn.Module] | None = None
        self.probe()

    def probe(self) -> None:
        """Looks for segments in the next forward. Idempotent."""
        if not self._probes:
            # Scripted modules take no hooks; what is called inside them cannot be a checkpoint.
            self._probes = [
                m.register_forward_pre_hook(self._hook(self._probe))
                for m in self._names
                if not isinstance(m, torch.jit.ScriptModule)
            ]

    def begin(self) -> None:
        """Before a forward with gradients."""
        if self._left and not self._probes and self._tracking and self._versions != self._versions_now():
            self._left -= 1
            self.probe()
        self.ran = set() if self._probes else None

    def end(self) -> None:
        """After a forward with gradients."""
        self.stop_probing()
        if self._left and self._tracking:
            self._versions = self._versions_now()

    def stop_probing(self) -> None:
        """Idempotent."""
        for handle in self._probes:
            handle.remove()
        self._probes = []

    def _versions_now(self) -> list[int]:
        """How often one buffer of each module with running statistics was written to: no value is looked at."""
        return [-1 if (b := buffers.get(name)) is None else b._version for buffers, name in self._watched]

    def remove(self) -> None:
        self.stop_probing()
        for handle in self._guards:
            handle.remove()
        self._guards = []

    def _probe(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling() or not self._running():
            return
        if self.ran is not None:
            self.ran.add(module)
        if module in self._guarded:
            return
        if not in_checkpointed_segment():
            return
        keeps_statistics = module in self._tracking
        runs_with_math = self._above() and not self._lies_within_one_with_math(module)
        if runs_with_math:
            self._with_math[module] = MathAttention()
        if keeps_statistics or runs_with_math:
            self._guarded.add(module)
            self._left = self.VAIN
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
            put_back(module, buffers)


def in_checkpointed_segment() -> bool:
    """Whether what runs is inside non-reentrant checkpointing, which recomputes it in the backward pass."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return bool(hooks) and getattr(hooks[0], "__module__", "") == "torch.utils.checkpoint"

"""Makes recomputations by activation checkpointing free of side effects and use the kernels of the forward.

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

from pal_fast.capture.buffers import Buffers, put_back, swap_in_copies, tracking
from pal_fast.capture.hook import Hook
from pal_fast.capture.math_attention import MathAttention


class CheckpointedSegments:
    """Finds, in one forward, the modules that run in checkpointed segments, and guards their recomputations.

    All modules carry probes during that forward only, so that other forwards cost nothing. If running statistics
    changed between two forwards, checkpointing may have been enabled in the meantime: the next forward is probed
    again.
    """

    #: How many consecutive forwards may be probed without finding anything new: DDP, for one, writes statistics between
    #: forwards.
    FRUITLESS_PROBES = 8

    def __init__(self, model: nn.Module, running: Callable[[], bool], above: Callable[[], bool]) -> None:
        """
        Args:
            running: whether a forward of the model with gradients is in progress.
            above: whether it has passed the attributed layer, with attention switched to MATH.
        """
        self._model, self._running, self._above = model, running, above
        self._names = {module: name for name, module in model.named_modules()}
        self._tracking = dict.fromkeys(tracking(model))
        # BatchNorm's kernel writes running_mean without bumping its version; InstanceNorm does not count batches.
        self._watched = [
            (m._buffers, "num_batches_tracked" if isinstance(m, _BatchNorm) else "running_mean") for m in self._tracking
        ]
        self._probes: list[Any] = []
        self._guards: list[Any] = []
        #: Whether to probe the next forward.
        self._due = True
        self._left = self.FRUITLESS_PROBES
        self._versions: list[int] = []
        self._with_math: dict[nn.Module, MathAttention] = {}
        self._real: dict[nn.Module, Buffers] = {}
        self._guarded: set[nn.Module] = set()
        #: The modules that ran in the latest forward with gradients; None if it was not probed.
        self.ran: set[nn.Module] | None = None

    def probe(self) -> None:
        """Looks for segments in the next forward. Idempotent."""
        self._due = True

    def begin(self) -> None:
        """Called before a forward with gradients, from a hook of the model itself."""
        if self._probes:  # The previous forward was interrupted.
            self._stop_probing()
            self._due = True
        if self._left and not self._due and self._tracking and self._versions != self._versions_now():
            self._left -= 1
            self._due = True
        self.ran = set() if self._due else None
        if self._due:
            self._due = False
            # Scripted modules accept no hooks, and nothing called inside them can be a checkpoint.
            self._probes = [
                m.register_forward_pre_hook(Hook(self._probe))
                for m in self._names
                if m is not self._model and not isinstance(m, torch.jit.ScriptModule)
            ]
            # This forward ignores hooks added to the model now, so the model itself is probed by hand.
            self._probe(self._model, ())

    def end(self) -> None:
        """Called after a forward with gradients."""
        self._stop_probing()
        if self._left and self._tracking:
            self._versions = self._versions_now()

    def _stop_probing(self) -> None:
        for handle in self._probes:
            handle.remove()
        self._probes = []

    def _versions_now(self) -> list[int]:
        """The version counter of one buffer of each module with running statistics; no values are read."""
        return [-1 if (b := buffers.get(name)) is None else b._version for buffers, name in self._watched]

    def remove(self) -> None:
        self._stop_probing()
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
            self._left = self.FRUITLESS_PROBES
            self._guards.append(module.register_forward_pre_hook(Hook(self._before)))
            self._guards.append(module.register_forward_hook(Hook(self._after), always_call=True))

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
    """Whether the caller runs inside non-reentrant checkpointing, which recomputes it in the backward pass."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return bool(hooks) and getattr(hooks[0], "__module__", "") == "torch.utils.checkpoint"

"""Whether a training step's gradients are right: judged by the formula in eager PyTorch (`benchmarks.step`)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..harness import relative_error
from .cases import Case, Naive, Plain, Relaid, Step

# Bound on the float64 error; and the minimum bound in the timed dtype, for networks insensitive to the memory format.
EXACT = 1e-6
LEAST_BOUND = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


class Judge:
    """Compares a step's gradients with those of the formula in eager PyTorch for the same case."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._gradients: dict[tuple[type[Step], Case], Tensor] = {}

    def __call__(self, step: Step) -> tuple[float, float]:
        """(relative L2 error, bound in the case's dtype)."""
        wanted = self._of(getattr(type(step), "judge", Plain if type(step) is Plain else Naive), step.case)
        bound = EXACT
        if step.case.dtype != torch.float64:
            spread = relative_error(self._of(Relaid, step.case), self._of(Naive, step.case))
            bound = max(2 * spread, LEAST_BOUND[step.case.dtype])
        return relative_error(gradients_of(step), wanted), bound

    def _of(self, kind: type[Step], case: Case) -> Tensor:
        if (kind, case) not in self._gradients:
            self._gradients[kind, case] = gradients_of(kind(case, self.device))
        return self._gradients[kind, case]


def gradients_of(step: Step) -> Tensor:
    """The gradients of all parameters of a step, as one float64 vector."""
    step()
    gradients = [p.grad for p in step.model.parameters() if p.grad is not None]
    return torch.cat([g.detach().double().flatten() for g in gradients])

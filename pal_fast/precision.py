"""Reduced precision: the loss out of autocast's reach, and a scale of the attributed scalar that keeps fp16 alive."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Where the largest entry of g is kept, times the batch's positions (B * H * W). The second derivatives of BatchNorm
#: sum g over them, and dP/dg is of order 1 / (positions * g): both then keep their distance to float16's 65504,
#: whatever the size of the batch and of the map.
LARGEST_SUM = 2.0**11

#: The scale's bound: it enters the backward pass as a float16 number.
MOST = 2.0**15


def autocasts(tensor: Tensor) -> bool:
    """Whether operations on the device of `tensor` are cast."""
    return torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(tensor.device.type)


class ScalarScale:
    """A power of two by which the attributed scalar is multiplied where the layer's output is float16.

    The loss does not depend on the scale of `g = dS/df` (DESIGN 1), but float16 does: entries under 6e-8 vanish,
    and dP/dg, of order 1/g, overflows for a small g. The scale follows the largest entry of the previous step's
    g on the device, without a synchronisation, so that it stays near `LARGEST_SUM` over the number of positions.
    """

    def __init__(self) -> None:
        self._next: Tensor | None = None
        self.used: Tensor | None = None

    @property
    def ready(self) -> bool:
        """Whether a gradient has been followed yet."""
        return self._next is not None

    @property
    def value(self) -> Tensor | None:
        """0-dim float32: the scale for the next gradient; None (a scale of 1) before the first."""
        return self._next

    def follow(self, gradients: Sequence[Tensor]) -> None:
        """Sets the next scale from `gradients`, taken at the present one."""
        if not gradients:
            return
        largest = torch.stack([g.detach().abs().amax().float() * _positions(g) for g in gradients]).amax()
        self.used = torch.ones_like(largest) if self._next is None else self._next
        step = torch.exp2(torch.log2(LARGEST_SUM / largest).round())
        step = torch.where(torch.isfinite(largest), torch.where(largest == 0, 2.0**8, step), 2.0**-8)
        self._next = (self.used * step).clamp(1 / MOST, MOST)


def _positions(gradient: Tensor) -> int:
    """B * H * W; the channels are taken for the larger of the two dimensions where they may be."""
    return gradient.numel() // max(gradient.shape[1], gradient.shape[-1], 1)

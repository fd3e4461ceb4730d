"""A scale of the attributed scalar with which its gradient survives float16."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pal_fast.capture.captured import Captured

#: Where the largest entry of g is kept, times the batch's positions (B * H * W). The second derivatives of BatchNorm
#: sum g over them, and dP/dg is of order 1 / (positions * g): both then keep their distance to float16's 65504,
#: whatever the size of the batch and of the map.
LARGEST_SUM = 2.0**11

#: The scale's bound: it enters the backward pass as a float16 number.
MOST = 2.0**15


def in_float16(logits: Tensor, layers: Sequence[Captured]) -> bool:
    """Whether the way from the logits back to the layers leads through float16. The residual stream of a ViT is
    float32 under autocast, and all that is added to it float16."""
    return logits.dtype == torch.float16 or any(
        layer.float16 or (layer.output is not None and layer.output.dtype == torch.float16) for layer in layers
    )


class ScalarScale:
    """A power of two by which the attributed scalar is multiplied where its gradient is taken in float16.

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

    def follow(self, gradients: Sequence[Tensor], attributed: Tensor | None = None) -> None:
        """Sets the next scale from `gradients`, taken at the present one.

        Args:
            attributed: 0-dim bool, whether any logit was: where none was, that g is 0 says nothing about the scale.
                None for yes.
        """
        gradients = [g for g in gradients if g.numel()]
        if not gradients:
            return
        largest = torch.stack([g.detach().abs().amax().float() * _positions(g) for g in gradients]).amax()
        self.used = torch.ones_like(largest) if self._next is None else self._next
        step = torch.exp2(torch.log2(LARGEST_SUM / largest).round())
        larger = torch.full_like(largest, 2.0**8)
        if attributed is not None:
            larger = torch.where(attributed, larger, 1.0)
        step = torch.where(torch.isfinite(largest), torch.where(largest == 0, larger, step), 2.0**-8)
        self._next = (self.used * step).clamp(1 / MOST, MOST)


def _positions(gradient: Tensor) -> int:
    """B * H * W; the channels are taken for the larger of the two dimensions where they may be."""
    return gradient.numel() // max(gradient.shape[1], gradient.shape[-1], 1)

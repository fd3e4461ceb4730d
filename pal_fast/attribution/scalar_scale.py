"""A scale of the attributed scalar that keeps its gradient in float16's range."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pal_fast.capture.captured import Captured

#: The target for the largest entry of g times the number of positions in the batch (B * H * W). The second derivative
#: of BatchNorm sums g over the positions, and dP/dg is of order 1 / (positions * g): with this target both stay well
#: below float16's 65504 for any size of batch and map.
LARGEST_SUM = 2.0**11

#: The upper bound of the scale, which enters the backward pass as a float16 value.
MOST = 2.0**15


def in_float16(logits: Tensor, layers: Sequence[Captured]) -> bool:
    """Whether the path from the logits back to the layers passes through float16. Under autocast the residual stream
    of a ViT is float32, but everything added to it is float16."""
    return logits.dtype == torch.float16 or any(
        layer.float16 or (layer.output is not None and layer.output.dtype == torch.float16) for layer in layers
    )


class ScalarScale:
    """A power of two that multiplies the attributed scalar when its gradient is taken in float16.

    The loss does not depend on the scale of `g = dS/df` (DESIGN 1), but float16 does: entries below 6e-8 underflow,
    and dP/dg, of order 1/g, overflows for small g. The scale is updated on the device, without synchronisation, from
    the largest entry of the previous step's g, which it keeps near `LARGEST_SUM` divided by the number of positions.
    """

    def __init__(self) -> None:
        self._next: Tensor | None = None
        self.used: Tensor | None = None

    @property
    def ready(self) -> bool:
        """Whether `follow` has seen a gradient yet."""
        return self._next is not None

    @property
    def value(self) -> Tensor | None:
        """0-dim float32: the scale for the next gradient; None (a scale of 1) before the first."""
        return self._next

    def follow(self, gradients: Sequence[Tensor], attributed: Tensor | None = None) -> None:
        """Sets the next scale from `gradients`, taken at the current one.

        Args:
            attributed: 0-dim bool, whether any logit was attributed: if none was, g = 0 says nothing about the scale.
                None means true.
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
    """B * H * W; of the two dimensions that may hold the channels, the larger is assumed to."""
    return gradient.numel() // max(gradient.shape[1], gradient.shape[-1], 1)

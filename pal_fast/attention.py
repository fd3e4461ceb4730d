"""Attention whose derivative can be differentiated again: PyTorch's MATH kernel, between two hooks.

The flash and memory-efficient kernels of `scaled_dot_product_attention` have no second derivative, and which
kernel runs is decided in the forward. The layers above the attributed one therefore run with MATH; the body
keeps the fast kernels.
"""

from __future__ import annotations

import torch

_KERNELS = (
    (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
    (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
)
_ONLY_MATH = (False, False, False, True)


class MathAttention:
    """Switches the process to the MATH kernel, and back to what was enabled before."""

    def __init__(self) -> None:
        self._before: tuple[bool, ...] | None = None
        self._inside = False

    @property
    def entered(self) -> bool:
        """Whether this object, or someone before it, has switched to MATH and this one has not left."""
        return self._inside

    def enter(self) -> None:
        """Idempotent until `leave`."""
        if self._inside:
            return
        self._inside = True
        before = tuple(enabled() for enabled, _ in _KERNELS)
        if before != _ONLY_MATH:
            self._before = before
            _enable(_ONLY_MATH)

    def leave(self) -> None:
        """Idempotent."""
        self._inside = False
        if self._before is not None:
            _enable(self._before)
            self._before = None


def _enable(kernels: tuple[bool, ...]) -> None:
    for (_, enable), wanted in zip(_KERNELS, kernels, strict=True):
        enable(wanted)

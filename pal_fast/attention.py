"""Attention whose derivative can be differentiated again: PyTorch's MATH kernel, between two hooks.

The flash and memory-efficient kernels of `scaled_dot_product_attention` have no second derivative, and which
kernel runs is decided in the forward. The layers above the attributed one therefore run with MATH; the body
keeps the fast kernels.
"""

from __future__ import annotations

import torch

# What torch.backends.cuda wraps: every forward of the model switches twice.
_ENABLED = (
    torch._C._get_flash_sdp_enabled,
    torch._C._get_mem_efficient_sdp_enabled,
    torch._C._get_cudnn_sdp_enabled,
    torch._C._get_math_sdp_enabled,
)
_ENABLE = (
    torch._C._set_sdp_use_flash,
    torch._C._set_sdp_use_mem_efficient,
    torch._C._set_sdp_use_cudnn,
    torch._C._set_sdp_use_math,
)
_ONLY_MATH = [False, False, False, True]


class MathAttention:
    """Switches the process to the MATH kernel, and back to what was enabled before."""

    def __init__(self) -> None:
        self._before: list[bool] | None = None
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
        before = [enabled() for enabled in _ENABLED]
        if before != _ONLY_MATH:
            self._before = before
            _enable(_ONLY_MATH)

    def leave(self) -> None:
        """Idempotent."""
        self._inside = False
        if self._before is not None:
            _enable(self._before)
            self._before = None


def _enable(kernels: list[bool]) -> None:
    for enable, wanted in zip(_ENABLE, kernels, strict=True):
        enable(wanted)

"""Attention that can be differentiated twice: enables only PyTorch's MATH kernel between two hooks.

The flash and memory-efficient kernels of `scaled_dot_product_attention` have no second derivative, and the kernel is
chosen in the forward. The layers above the attributed one therefore run with MATH, unless `prepare_head` has replaced
them; the body keeps the fast kernels.
"""

from __future__ import annotations

import threading

import torch

Kernels = tuple[bool, bool, bool, bool]  # flash, memory-efficient, cuDNN, MATH
_ONLY_MATH: Kernels = (False, False, False, True)


# The functions that torch.backends.cuda wraps, called directly because every forward of the model switches twice.
def _enabled() -> Kernels:
    return (
        torch._C._get_flash_sdp_enabled(),
        torch._C._get_mem_efficient_sdp_enabled(),
        torch._C._get_cudnn_sdp_enabled(),
        torch._C._get_math_sdp_enabled(),
    )


def _enable(kernels: Kernels, before: Kernels) -> None:
    """Switches the flags that differ from `before`."""
    flash, efficient, cudnn, math = kernels
    if flash != before[0]:
        torch._C._set_sdp_use_flash(flash)
    if efficient != before[1]:
        torch._C._set_sdp_use_mem_efficient(efficient)
    if cudnn != before[2]:
        torch._C._set_sdp_use_cudnn(cudnn)
    if math != before[3]:
        torch._C._set_sdp_use_math(math)


class _Process:
    """The flags are global to the process: losses and threads share them, and the last user restores them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.before = _ONLY_MATH

    def enter(self) -> None:
        with self.lock:
            self.users += 1
            if self.users == 1:
                self.before = _enabled()
                _enable(_ONLY_MATH, self.before)

    def leave(self) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                _enable(self.before, _ONLY_MATH)


_process = _Process()


class MathAttention:
    """Switches the process to the MATH kernel, and back to the kernels enabled before."""

    def __init__(self) -> None:
        self.entered = False

    def enter(self) -> None:
        """Idempotent until `leave`."""
        if not self.entered:
            self.entered = True
            _process.enter()

    def leave(self) -> None:
        """Idempotent."""
        if self.entered:
            self.entered = False
            _process.leave()

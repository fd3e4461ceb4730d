"""The layers' derivatives that Triton computes in one kernel, if it can run."""

from __future__ import annotations

import importlib
import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pal_fast import dispatch

#: The longest row that one program processes as a whole, in elements.
MOST_WIDTH = 4096


@lru_cache(maxsize=64)
def _module(device: torch.device, name: str) -> Any:
    """A module of `pal_fast.kernels`; None if Triton does not support `device`, or would interpret."""
    if device.type != "cuda" or dispatch.why_not("triton", device):
        return None
    return importlib.import_module(f"pal_fast.kernels.{name}")


def attention_kernels(device: torch.device, keys: int) -> Any:
    """`pal_fast.kernels.attention` if it supports rows of `keys` elements on `device`; otherwise None."""
    return _module(device, "attention") if keys <= MOST_WIDTH else None


def layer_norm_double_backward(
    v: Tensor, grad: Tensor, input: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """The gradients of <v, dx> with respect to g, x and w (see `layer_norm`); None if Triton cannot compute them.

    v, grad, input (..., *shape); weight (*shape) or None; mean, rstd (..., 1, ...).
    """
    kernels = _module(input.device, "layer_norm")
    width = math.prod(shape)
    if kernels is None or width > MOST_WIDTH or input.numel() == 0:
        return None
    found: tuple[Tensor, Tensor, Tensor | None] = kernels.layer_norm_double_backward(
        v, grad, input, weight, mean, rstd, width
    )
    return found


def activation_double_backward(v: Tensor, grad: Tensor, input: Tensor, kind: str) -> tuple[Tensor, Tensor] | None:
    """The gradients of <v, g y'> with respect to g and x (`smooth_activations`); None if Triton cannot compute them."""
    kernels = _module(input.device, "smooth_activations")
    if kernels is None or input.numel() == 0:
        return None
    found: tuple[Tensor, Tensor] = kernels.activation_double_backward(v, grad, input, kind)
    return found

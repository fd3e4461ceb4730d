"""Autocast: whether it is on, what it casts to, and how to switch it off. Not every device type has it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def autocasts(tensor: Tensor) -> bool:
    """Whether operations on the device of `tensor` are cast."""
    return torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(tensor.device.type)


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype that operations on the device of `tensor` are cast to; None if autocast is off."""
    return torch.get_autocast_dtype(tensor.device.type) if autocasts(tensor) else None


def cast(value: Any) -> Any:
    """Casts an operator's argument as autocast does, if it is on: float64 and non-tensors are unchanged."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == torch.float64:
        return value
    dtype = autocast_dtype(value)
    return value if dtype is None else value.to(dtype)


def outside_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Switches autocast off on the device of `tensor`, if it is on."""
    return torch.autocast(tensor.device.type, enabled=False) if autocasts(tensor) else nullcontext()

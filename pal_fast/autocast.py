"""Autocast: whether it is on, what it casts to, and how to stay out of its reach. Not every kind of device has it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def autocasts(tensor: Tensor) -> bool:
    """Whether operations on the device of `tensor` are cast."""
    return torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(tensor.device.type)


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """What operations on the device of `tensor` are cast to; None where they are not."""
    return torch.get_autocast_dtype(tensor.device.type) if autocasts(tensor) else None


def cast(value: Any) -> Any:
    """As autocast casts what its operators are given, where it is on: float64 and what is no tensor stay."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == torch.float64:
        return value
    dtype = autocast_dtype(value)
    return value if dtype is None else value.to(dtype)


def outside_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Switches autocast off on the device of `tensor`, where it is on."""
    return torch.autocast(tensor.device.type, enabled=False) if autocasts(tensor) else nullcontext()

"""Checks of users' arguments. Each error names the argument, what was given and what is expected."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pal_fast.messages import describe, near

#: The longest side of an image or a map: the operators take sizes as 32-bit numbers.
MOST_PIXELS = 2**31 - 1


class NotReadyError(RuntimeError, ValueError):
    """A call at the wrong moment, or with tensors from another forward: nothing was captured, or nothing can be
    differentiated. A RuntimeError by convention, and a ValueError like every other invalid call."""


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def choice(name: str, given: object, known: Sequence[str]) -> None:
    if not isinstance(given, str):
        raise TypeError(f"{name} must be one of {', '.join(map(repr, known))}, got {describe(given)}")
    if given not in known:
        wanted = ", ".join(map(repr, known))
        raise ValueError(f"{name} must be one of {wanted}, got {given!r}{near(given, known, 1)}")


def instance(name: str, given: object, kinds: type | tuple[type, ...], wanted: str) -> None:
    """`wanted` describes the `kinds` in the error, such as "a Figure"."""
    if not isinstance(given, kinds):
        raise TypeError(f"{name} must be {wanted}, got {describe(given)}")


def module(name: str, given: object) -> None:
    instance(name, given, nn.Module, "a torch.nn.Module")


def path(name: str, given: Any) -> Path:
    instance(name, given, (str, os.PathLike), "a path")
    return Path(given)


def texts(name: str, given: Any, count: int | None = None) -> tuple[str, ...]:
    """Strings, `count` of them if given: one for each image."""
    if isinstance(given, (str, Tensor)) or not isinstance(given, Iterable):
        raise TypeError(f"{name} must be a sequence of strings, got {describe(given)}")
    held = tuple(given)
    for text in held:
        instance(f"each of {name}", text, str, "a string")
    if count not in (None, len(held)):
        raise ValueError(f"{name} must hold {count} strings, one for each image, got {len(held)}")
    return held


def _is_whole(given: Any) -> bool:
    # Python's int first, and numpy's in a separate test: torch.compile traces this.
    return (isinstance(given, int) and not isinstance(given, bool)) or isinstance(given, np.integer)


def _is_real(given: Any) -> bool:
    return isinstance(given, float) or _is_whole(given) or isinstance(given, np.floating)


def sigma(given: Any) -> None:
    """Restricted so that its square and the inverse of its square are in float32's range."""
    if not _is_real(given):
        raise TypeError(f"sigma must be a positive number, got {describe(given)}")
    if not (given > 0 and _finite(given)):
        raise ValueError(f"sigma must be positive and finite, got {given}")
    if not 1e-15 <= float(given) <= 1e15:
        raise ValueError(f"sigma must lie between 1e-15 and 1e15 pixels, got {given}")


def finite_number(name: str, given: Any) -> None:
    if not _is_real(given):
        raise TypeError(f"{name} must be a number, got {describe(given)}")
    if not _finite(given):
        raise ValueError(f"{name} must be finite, got {describe(given)}")


def number_within(name: str, given: Any, low: float, high: float = math.inf) -> None:
    """A finite number from `low` to `high`, both included."""
    finite_number(name, given)
    if not low <= given <= high:
        wanted = f"{low} or more" if high == math.inf else f"from {low} to {high}"
        raise ValueError(f"{name} must be {wanted}, got {given}")


def probability(name: str, given: Any) -> None:
    finite_number(name, given)
    if not 0 <= given <= 1:
        raise ValueError(f"{name} must be a probability, from 0 to 1, got {given}")


def positive_number(name: str, given: Any) -> None:
    finite_number(name, given)
    if not given > 0:
        raise ValueError(f"{name} must be positive, got {given}")


def whole_number(name: str, given: Any, least: int) -> None:
    if not _is_whole(given):
        raise TypeError(f"{name} must be a whole number, got {describe(given)}")
    if given < least:
        raise ValueError(f"{name} must be at least {least}, got {given}")


def whole_numbers(name: str, given: Any) -> Tensor:
    """(N,) int64 from a tensor, an array or a sequence."""
    try:
        numbers = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"{name} must be a sequence of whole numbers, got {describe(given)}") from None
    if numbers.ndim != 1:
        raise ValueError(f"{name} must have shape (N,), got {tuple(numbers.shape)}")
    if numbers.numel() and (numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool):
        raise TypeError(f"{name} must hold whole numbers, got {numbers.dtype}")
    return numbers.to(torch.int64)


def per_channel(name: str, given: Any, channels: int) -> None:
    """One finite number for each channel."""
    numbers = given.tolist() if isinstance(given, (Tensor, np.ndarray)) else given
    if not isinstance(numbers, (tuple, list)) or len(numbers) != channels:
        raise TypeError(f"{name} must hold {channels} numbers, one for each channel, got {describe(given)}")
    for number in numbers:
        finite_number(f"each of {name}", number)


def _finite(given: int | float) -> bool:
    """Whether it is finite as a float, which an int of more than 308 digits is not."""
    try:
        return math.isfinite(given)
    except OverflowError:
        return False


def channel_count(given: Any) -> int | float | None:
    """The checked value as a Python number."""
    if given is None:
        return None
    if not _is_real(given):
        raise TypeError(f"channel_count must be an int or a fraction in (0, 1], got {describe(given)}")
    if _is_whole(given):
        if given < 1:
            raise ValueError(f"channel_count must be at least 1, got {given}")
        return int(given)
    if not 0 < given <= 1:
        raise ValueError(f"channel_count as a fraction must lie in (0, 1], got {given}")
    return float(given)


def size_pair(name: str, given: Any) -> tuple[int, int]:
    """(height, width) from an int or a pair of ints."""
    pair = (given, given) if _is_whole(given) else given
    if not (isinstance(pair, (tuple, list, torch.Size)) and len(pair) == 2 and all(map(_is_whole, pair))):
        raise TypeError(f"{name} must be (height, width) in whole pixels or one int, got {describe(given)}")
    height, width = int(pair[0]), int(pair[1])
    if min(height, width) < 1:
        raise ValueError(f"{name} must be at least 1 x 1, got {(height, width)}")
    if max(height, width) > MOST_PIXELS:
        raise ValueError(f"{name} must be at most {MOST_PIXELS} on either side, got {(height, width)}")
    return height, width


def tensor(name: str, given: Any, shape: str, ndim: int) -> None:
    """A tensor of `ndim` dimensions; `shape` describes them in the error."""
    if not isinstance(given, Tensor):  # not `instance`: every step of a loss checks tensors, and needs no text for it
        raise TypeError(f"{name} must be a tensor of shape {shape}, got {describe(given)}")
    if given.ndim != ndim:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(given.shape)}")


def points(name: str, given: Any, shape: str = "(..., K, 2)", ndim: int | None = None) -> None:
    """A tensor of points in the plane, of `ndim` dimensions or any number."""
    instance(name, given, Tensor, f"a tensor of shape {shape}")
    if given.ndim < 2 or given.shape[-1] != 2 or ndim not in (None, given.ndim):
        raise ValueError(f"{name} must have shape {shape}, got {tuple(given.shape)}")
    if given.is_complex():
        raise TypeError(f"{name} must hold real numbers, got {given.dtype}")


def floating_tensor(name: str, given: Any, shape: str, ndim: int) -> None:
    """A dense floating-point tensor of `ndim` dimensions; `shape` describes them in the error."""
    tensor(name, given, shape, ndim)
    if given.dtype not in FLOATS:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {given.dtype}")
    dense(name, given)


def dense(name: str, given: Tensor) -> None:
    if given.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got one of layout {given.layout}")


def layer_tensor(name: str, given: Any) -> None:
    """The output of a layer or its gradient: (B, C, H, W) with C, H and W at least 1."""
    floating_tensor(name, given, "(B, C, H, W)", 4)
    if 0 in given.shape[1:]:
        raise ValueError(f"{name} must have at least one channel and one cell, got {tuple(given.shape)}")


def same(name: str, given: Tensor, other_name: str, other: Tensor) -> None:
    """Equal shape and device."""
    if given.shape != other.shape:
        raise ValueError(f"{name} must have the shape of {other_name}, {tuple(other.shape)}, got {tuple(given.shape)}")
    on_device(name, given, other_name, other.device)


def on_device(name: str, given: Tensor, other_name: str, device: torch.device) -> None:
    if given.device != device:
        raise ValueError(f"{name} is on {given.device}, but {other_name} is on {device}: move it there first")


def landmarks(given: Any, batch: int | None = None) -> None:
    """(B, K, 2), any real dtype."""
    instance("landmarks", given, Tensor, "a tensor of shape (B, K, 2)")
    if given.ndim != 3 or given.shape[2] != 2:
        raise ValueError(f"landmarks must have shape (B, K, 2), (x, y) in pixels, got {tuple(given.shape)}")
    if given.is_complex() or given.dtype == torch.bool:
        raise TypeError(f"landmarks must hold real numbers, got {given.dtype}")
    if given.is_floating_point() and given.dtype not in FLOATS:
        raise TypeError(f"landmarks must be float16, bfloat16, float32, float64 or integers, got {given.dtype}")
    dense("landmarks", given)
    if batch is not None and given.shape[0] != batch:
        raise ValueError(f"landmarks hold {given.shape[0]} samples, but the batch has {batch}")


def per_landmark(name: str, given: Any, points: Tensor, *, boolean: bool) -> None:
    """(B, K), or (K,) and finite for weights, to go with `points` (B, K, 2)."""
    wanted = tuple(points.shape[:2])
    if not isinstance(given, Tensor):
        raise TypeError(f"{name} must be a tensor of shape {wanted}, got {describe(given)}")
    if boolean and given.dtype != torch.bool:
        raise TypeError(f"{name} must be a bool tensor, got {given.dtype}")
    if not boolean and not given.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {given.dtype}")
    if tuple(given.shape) != wanted and (boolean or tuple(given.shape) != wanted[1:]):
        raise ValueError(f"{name} must have shape {wanted}, like the landmarks, got {tuple(given.shape)}")
    dense(name, given)
    on_device(name, given, "landmarks", points.device)
    if not boolean:
        _finite_values(name, given)


def sample_weight(given: Any, batch: int, device: torch.device) -> None:
    if not isinstance(given, Tensor):
        raise TypeError(f"sample_weight must be a tensor of shape ({batch},), got {describe(given)}")
    if tuple(given.shape) != (batch,):
        raise ValueError(f"sample_weight must have shape ({batch},), got {tuple(given.shape)}")
    if given.is_complex():
        raise TypeError(f"sample_weight must hold real numbers, got {given.dtype}")
    dense("sample_weight", given)
    on_device("sample_weight", given, "the layer's output", device)
    if given.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "sample_weight must not require a gradient, because it gets none: detach it, or, to learn it, weight the "
            "scores of reduction='none' yourself"
        )
    _finite_values("sample_weight", given)


def has_values(given: Tensor) -> bool:
    """Whether Python can read its values: not while torch.compile traces, nor under `torch.func.vmap`, nor where there
    are none (on the meta device, under FakeTensorMode)."""
    if torch.compiler.is_compiling() or given.device.type == "meta" or type(given).__name__ == "FakeTensor":
        return False
    while torch._C._functorch.is_functorch_wrapped_tensor(given):
        if torch._C._functorch.is_batchedtensor(given):
            return False
        given = torch._C._functorch.get_unwrapped(given)
    return True


def _finite_values(name: str, given: Tensor) -> None:
    """Reads the values only on the CPU: on a GPU this would synchronise."""
    if given.device.type == "cpu" and has_values(given) and not bool(torch.isfinite(given).all()):
        raise ValueError(f"{name} must be finite, got {given.tolist()}")

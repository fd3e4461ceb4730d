"""Tolerances: relative L2 errors against the float64 reference, by the input's dtype (DESIGN 4)."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def relative_error(value: Tensor, wanted: Tensor, typical: float | None = None) -> float:
    """||value - wanted|| / ||wanted||, in float64; the absolute error where `wanted` is all zero.

    Args:
        typical: the usual size of `wanted`; the error is relative to it where `wanted` is smaller. Scores
            are sums of terms of either sign that may cancel to nothing: 0.1 for them, and for every scalar, which
            is a mean of scores.
    """
    value, wanted = value.detach().double().cpu(), wanted.detach().double().cpu()
    assert value.shape == wanted.shape, f"shape {tuple(value.shape)}, wanted {tuple(wanted.shape)}"
    if typical is None:
        typical = 0.1 if wanted.ndim == 0 else 0.0
    size = max(wanted.norm().item(), typical)
    return (value - wanted).norm().item() / (size or 1.0)


def assert_close(
    value: Tensor, wanted: Tensor, dtype: torch.dtype, what: str = "value", typical: float | None = None
) -> None:
    """Asserts the bound that DESIGN sets for inputs of `dtype`. NaN never passes. `typical`: see `relative_error`."""
    error = relative_error(value, wanted, typical)
    assert error <= TOLERANCE[dtype], f"{what}: relative error {error:.2e}, bound {TOLERANCE[dtype]:.0e} ({dtype})"

"""How close is close: relative L2 errors against the float64 reference, by the input's dtype (DESIGN 4)."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def relative_error(value: Tensor, wanted: Tensor) -> float:
    """||value - wanted|| / ||wanted||, in float64; the absolute error where `wanted` is all zero.

    A scalar is a mean of scores of either sign that may cancel to nothing, so its error is judged against at
    least 0.1, the size of a typical score.
    """
    value, wanted = value.detach().double().cpu(), wanted.detach().double().cpu()
    assert value.shape == wanted.shape, f"shape {tuple(value.shape)}, wanted {tuple(wanted.shape)}"
    size = max(wanted.norm().item(), 0.1) if wanted.ndim == 0 else wanted.norm().item()
    return (value - wanted).norm().item() / (size or 1.0)


def assert_close(value: Tensor, wanted: Tensor, dtype: torch.dtype, what: str = "value") -> None:
    """Within the bound that DESIGN sets for inputs of `dtype`. NaN never passes."""
    error = relative_error(value, wanted)
    assert error <= TOLERANCE[dtype], f"{what}: relative error {error:.2e}, bound {TOLERANCE[dtype]:.0e} ({dtype})"

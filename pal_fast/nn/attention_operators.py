"""The interface of `pal_fast.kernels.attention`, implemented with PyTorch's operators."""

from __future__ import annotations

import torch
from torch import Tensor


def _centred(y: Tensor, weights: Tensor) -> Tensor:
    """P (y - sum of P y over a row)."""
    centred: Tensor = torch.ops.aten._softmax_backward_data.default(y, weights, -1, weights.dtype)
    return centred


def attention_weights(scores: Tensor, scale: float, keys: int, dtype: torch.dtype) -> Tensor:
    """P = softmax(scale * scores) of `scores` (..., keys), which are overwritten; 0 in fully masked rows."""
    assert scores.shape[-1] == keys
    assert scores.dtype == dtype
    weights: Tensor = torch.ops.aten._safe_softmax.default(scores.mul_(scale), -1)
    return weights


def attention_backward(weights: Tensor, d_weights: Tensor, scale: float) -> Tensor:
    """dS times `scale`."""
    return _centred(d_weights, weights).mul_(scale)


def attention_double_backward(weights: Tensor, both: Tensor, u: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The gradient of dP (..., keys), and (..., 2 keys): the gradient of S, then dS, both times `scale`.

    Args:
        weights: P (..., keys).
        both: (..., 2 keys), dP, then the contribution of v's gradient to the gradient of P; overwritten.
        u: (..., keys), the gradient of dS divided by `scale`; overwritten.
    """
    d_weights, of_weights = both.split(weights.shape[-1], -1)
    d_weights -= torch.linalg.vecdot(weights, d_weights).unsqueeze(-1)
    u = u.mul_(scale)
    u -= torch.linalg.vecdot(weights, u).unsqueeze(-1)
    of_weights.addcmul_(u, d_weights)  # without terms constant along a row, which cancel
    of_scores = _centred(of_weights, weights)
    of_weights.copy_(d_weights).mul_(weights)
    d_weights.copy_(of_scores)
    return u.mul_(weights), both.mul_(scale)

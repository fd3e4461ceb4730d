# mypy: allow-untyped-defs
"""Triton: attention's row-wise operations: forward, backward and second derivative, one launch each.

The formulas are those of `pal_fast.nn.attention`; the matrix products are left to PyTorch. A matrix has `columns`
columns, the last few of which may be padding that aligns every row to a vector. In the padding the weights P are zero,
and so is everything computed from them. Each program processes several complete rows.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import OPTIONS, accumulator, ceil_div, high_and_low, on_device, power_of_two

#: Elements of each tensor that a program has in flight.
TILE_ELEMENTS = 2048


@triton.jit
def _rows(rows, columns, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The program's row indices [ROWS, 1], int64, its column indices [1, BLOCK], and the mask of its tile."""
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    j = tl.arange(0, BLOCK)
    return i[:, None], j[None, :], (i < rows)[:, None] & (j < columns)[None, :]


@triton.jit
def _scale(scale, low, T: tl.constexpr):
    return tl.full((), scale, T) + low


@triton.jit
def attention_weights_kernel(
    scores_ptr,  # [R, columns]
    weights_ptr,  # [R, columns]
    scale,  # a double, passed as the sum of two float32 values
    scale_low,
    rows,  # R
    columns,
    keys,  # columns that are not padding
    ROWS: tl.constexpr,  # per program
    BLOCK: tl.constexpr,
    T: tl.constexpr,
):
    i, j, mask = _rows(rows, columns, ROWS, BLOCK)
    offsets = i * columns + j
    scores = tl.load(scores_ptr + offsets, mask=mask, other=0.0).to(T)
    scores = tl.where(j < keys, scores * _scale(scale, scale_low, T), float("-inf"))
    row_max = tl.max(scores, axis=1)[:, None]
    row_max = tl.where(row_max == float("-inf"), 0.0, row_max)  # a fully masked row
    weights = tl.exp(scores - row_max)
    total = tl.sum(weights, axis=1)[:, None]
    tl.store(weights_ptr + offsets, weights / tl.where(total == 0.0, 1.0, total), mask=mask)


@triton.jit
def attention_backward_kernel(
    weights_ptr,  # [R, columns], like the other tensors
    d_weights_ptr,
    d_scores_ptr,
    scale,
    scale_low,
    rows,
    columns,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    T: tl.constexpr,
):
    i, j, mask = _rows(rows, columns, ROWS, BLOCK)
    offsets = i * columns + j
    weights = tl.load(weights_ptr + offsets, mask=mask, other=0.0).to(T)
    d_weights = tl.load(d_weights_ptr + offsets, mask=mask, other=0.0).to(T)
    d_weights -= tl.sum(weights * d_weights, axis=1)[:, None]
    tl.store(d_scores_ptr + offsets, weights * d_weights * _scale(scale, scale_low, T), mask=mask)


@triton.jit
def attention_double_backward_kernel(
    weights_ptr,  # [R, columns]: P
    both_ptr,  # [R, 2 columns]: dP, then the contribution of v's gradient to the gradient of P
    u_ptr,  # [R, columns]: the gradient of dS divided by the scale
    of_d_weights_ptr,  # [R, columns]: the gradient of dP
    of_scores_ptr,  # [R, 2 columns]: the gradient of S, then dS, both times the scale
    scale,
    scale_low,
    rows,
    columns,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    T: tl.constexpr,
):
    i, j, mask = _rows(rows, columns, ROWS, BLOCK)
    offsets, left, right = i * columns + j, i * 2 * columns + j, i * 2 * columns + columns + j
    weights = tl.load(weights_ptr + offsets, mask=mask, other=0.0).to(T)
    d_weights = tl.load(both_ptr + left, mask=mask, other=0.0).to(T)
    scale = _scale(scale, scale_low, T)
    u = tl.load(u_ptr + offsets, mask=mask, other=0.0).to(T) * scale

    # 1. dS, and the gradient of dP.
    d_weights -= tl.sum(weights * d_weights, axis=1)[:, None]
    along = tl.sum(weights * u, axis=1)[:, None]
    tl.store(of_scores_ptr + right, weights * d_weights * scale, mask=mask)
    tl.store(of_d_weights_ptr + offsets, weights * (u - along), mask=mask)

    # 2. The gradients of P and S. Terms of P's gradient that are constant along a row are omitted: they cancel below.
    of_weights = tl.load(both_ptr + right, mask=mask, other=0.0).to(T) + (u - along) * d_weights
    of_weights -= tl.sum(weights * of_weights, axis=1)[:, None]
    tl.store(of_scores_ptr + left, weights * of_weights * scale, mask=mask)


def _launch(kernel: Any, like: Tensor, columns: int, scale: float, **arguments: Any) -> None:
    """Launches `kernel` over the rows of matrices with `columns` columns."""
    rows, block = like.numel() // columns, power_of_two(columns)
    rows_at_once = max(1, TILE_ELEMENTS // block)
    high, low = high_and_low(scale)
    with on_device(like):
        kernel[(ceil_div(rows, rows_at_once),)](
            scale=high,
            scale_low=low,
            rows=rows,
            columns=columns,
            ROWS=rows_at_once,
            BLOCK=block,
            T=accumulator(like.dtype),
            **arguments,
            **OPTIONS,
        )


def attention_weights(scores: Tensor, scale: float, keys: int, dtype: torch.dtype) -> Tensor:
    """P = softmax(scale * scores) of `scores` (..., columns) over the first `keys` columns; 0 in the rest."""
    weights = torch.empty_like(scores, dtype=dtype)
    _launch(
        attention_weights_kernel,
        weights,
        scores.shape[-1],
        scale,
        scores_ptr=scores.contiguous(),
        weights_ptr=weights,
        keys=keys,
    )
    return weights


def attention_backward(weights: Tensor, d_weights: Tensor, scale: float) -> Tensor:
    """dS times `scale`, in the dtype of P."""
    d_scores = torch.empty_like(weights)
    _launch(
        attention_backward_kernel,
        weights,
        weights.shape[-1],
        scale,
        weights_ptr=weights,
        d_weights_ptr=d_weights.contiguous(),
        d_scores_ptr=d_scores,
    )
    return d_scores


def attention_double_backward(weights: Tensor, both: Tensor, u: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The gradient of dP (..., columns), and (..., 2 columns): the gradient of S, then dS, both times `scale`.

    Args:
        weights: P (..., columns).
        both: (..., 2 columns), dP, then the contribution of v's gradient to the gradient of P.
        u: (..., columns), the gradient of dS divided by `scale`.
    """
    of_d_weights = torch.empty_like(weights)
    of_scores = torch.empty_like(both, dtype=weights.dtype)
    _launch(
        attention_double_backward_kernel,
        weights,
        weights.shape[-1],
        scale,
        weights_ptr=weights,
        both_ptr=both.contiguous(),
        u_ptr=u.contiguous(),
        of_d_weights_ptr=of_d_weights,
        of_scores_ptr=of_scores,
    )
    return of_d_weights, of_scores

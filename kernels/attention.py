# mypy: allow-untyped-defs
"""Triton: what attention does to rows of its matrix, forward, backward and second derivative, in one launch each.

The formulas are those of `pal_fast.nn.attention`; products of matrices are PyTorch's. A matrix has `columns` columns of
which the last few may be padding, so that rows start at whole vectors: there the weights P are zero, and with them all
that is made of them. A program takes some rows, whole.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import OPTIONS, accumulator, ceil_div, high_and_low, on_device, power_of_two

#: Elements that a program has in flight of each of its tensors.
AT_ONCE = 2048


@triton.jit
def _rows(rows, columns, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The program's rows, int64, its columns, and which elements exist."""
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    j = tl.arange(0, BLOCK)
    return i[:, None], j[None, :], (i < rows)[:, None] & (j < columns)[None, :]


@triton.jit
def _scale(scale, rest, T: tl.constexpr):
    return tl.full((), scale, T) + rest


@triton.jit
def attention_weights_kernel(
    scores_ptr,  # [R, columns]
    weights_ptr,  # [R, columns]
    scale,  # a double, as two of float32
    scale_rest,
    rows,  # R
    columns,
    keys,  # columns that are no padding
    ROWS: tl.constexpr,  # that a program takes
    BLOCK: tl.constexpr,
    T: tl.constexpr,
):
    i, j, there = _rows(rows, columns, ROWS, BLOCK)
    at = i * columns + j
    scores = tl.load(scores_ptr + at, mask=there, other=0.0).to(T)
    scores = tl.where(j < keys, scores * _scale(scale, scale_rest, T), float("-inf"))
    highest = tl.max(scores, axis=1)[:, None]
    highest = tl.where(highest == float("-inf"), 0.0, highest)  # of a row that is masked as a whole
    weights = tl.exp(scores - highest)
    total = tl.sum(weights, axis=1)[:, None]
    tl.store(weights_ptr + at, weights / tl.where(total == 0.0, 1.0, total), mask=there)


@triton.jit
def attention_backward_kernel(
    weights_ptr,  # [R, columns], as all
    d_weights_ptr,
    d_scores_ptr,
    scale,
    scale_rest,
    rows,
    columns,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    T: tl.constexpr,
):
    i, j, there = _rows(rows, columns, ROWS, BLOCK)
    at = i * columns + j
    weights = tl.load(weights_ptr + at, mask=there, other=0.0).to(T)
    d_weights = tl.load(d_weights_ptr + at, mask=there, other=0.0).to(T)
    d_weights -= tl.sum(weights * d_weights, axis=1)[:, None]
    tl.store(d_scores_ptr + at, weights * d_weights * _scale(scale, scale_rest, T), mask=there)


@triton.jit
def attention_double_backward_kernel(
    weights_ptr,  # [R, columns]: P
    both_ptr,  # [R, 2 columns]: dP, then what the gradient of v adds to that of P
    u_ptr,  # [R, columns]: the gradient of dS, over the scale
    of_d_weights_ptr,  # [R, columns]: the gradient of dP
    of_scores_ptr,  # [R, 2 columns]: the gradient of S, then dS, both times the scale
    scale,
    scale_rest,
    rows,
    columns,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    T: tl.constexpr,
):
    i, j, there = _rows(rows, columns, ROWS, BLOCK)
    at, left, right = i * columns + j, i * 2 * columns + j, i * 2 * columns + columns + j
    weights = tl.load(weights_ptr + at, mask=there, other=0.0).to(T)
    d_weights = tl.load(both_ptr + left, mask=there, other=0.0).to(T)
    scale = _scale(scale, scale_rest, T)
    u = tl.load(u_ptr + at, mask=there, other=0.0).to(T) * scale

    # 1. dS, and the gradient of dP.
    d_weights -= tl.sum(weights * d_weights, axis=1)[:, None]
    along = tl.sum(weights * u, axis=1)[:, None]
    tl.store(of_scores_ptr + right, weights * d_weights * scale, mask=there)
    tl.store(of_d_weights_ptr + at, weights * (u - along), mask=there)

    # 2. The gradient of P, less what is constant in a row and vanishes in the next step, and that of S.
    of_weights = tl.load(both_ptr + right, mask=there, other=0.0).to(T) + (u - along) * d_weights
    of_weights -= tl.sum(weights * of_weights, axis=1)[:, None]
    tl.store(of_scores_ptr + left, weights * of_weights * scale, mask=there)


def _launch(kernel: Any, like: Tensor, columns: int, scale: float, **arguments: Any) -> None:
    """Launches `kernel` over the rows of matrices as wide as `columns`."""
    rows, block = like.numel() // columns, power_of_two(columns)
    rows_at_once = max(1, AT_ONCE // block)
    high, low = high_and_low(scale)
    with on_device(like):
        kernel[(ceil_div(rows, rows_at_once),)](
            scale=high,
            scale_rest=low,
            rows=rows,
            columns=columns,
            ROWS=rows_at_once,
            BLOCK=block,
            T=accumulator(like.dtype),
            **arguments,
            **OPTIONS,
        )


def attention_weights(scores: Tensor, scale: float, keys: int, dtype: torch.dtype) -> Tensor:
    """P = softmax of `scale` times `scores` (..., columns) along the first `keys` columns, 0 in the rest."""
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
    """dS times `scale`, in the type of P."""
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
    """The gradient of dP (..., columns), and (..., 2 columns) that of S and dS, both times `scale`.

    Args:
        weights: P (..., columns).
        both: (..., 2 columns), dP and what the gradient of v adds to that of P.
        u: (..., columns), the gradient of dS over `scale`.
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

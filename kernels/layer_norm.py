# mypy: allow-untyped-defs
"""Triton: the second derivative of layer normalisation, in one launch and a sum over programs.

The formulas are those of `pal_fast.nn.layer_norm`. A program processes several complete rows at a time and accumulates
its partial sum of the weight's gradient in registers; partial sums are added in a fixed order, without atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import OPTIONS, accumulator, ceil_div, on_device, power_of_two, wanted_programs

#: Elements of each of its three tensors that a program has in flight.
TILE_ELEMENTS = 2048


@triton.jit
def layer_norm_double_backward_kernel(
    v_ptr,  # [M, D], like all tensors without another shape
    grad_ptr,
    input_ptr,
    weight_ptr,  # [D] or None
    mean_ptr,  # [M]
    rstd_ptr,  # [M]
    d_grad_ptr,
    d_input_ptr,
    partial_ptr,  # [programs, D]: each program's partial sum of the weight's gradient; None without a weight
    rows,  # M
    width,  # D
    ROWS: tl.constexpr,  # per tile
    BLOCK: tl.constexpr,
    T: tl.constexpr,
):
    program, programs = tl.program_id(0), tl.num_programs(0)
    j = tl.arange(0, BLOCK)
    inverse_width = 1.0 / tl.full((), width, T)
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + j, mask=j < width, other=0.0).to(T)[None, :]
        d_weight = tl.zeros([ROWS, BLOCK], T)
    for first in range(program * ROWS, rows, programs * ROWS):
        # 1. Load the rows and normalise them.
        i = first + tl.arange(0, ROWS)
        mask = (i < rows)[:, None] & (j < width)[None, :]
        offsets = i.to(tl.int64)[:, None] * width + j[None, :]
        v = tl.load(v_ptr + offsets, mask=mask, other=0.0).to(T)
        grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(T)
        x = tl.load(input_ptr + offsets, mask=mask, other=0.0).to(T)
        mean = tl.load(mean_ptr + i, mask=i < rows, other=0.0).to(T)[:, None]
        rstd = tl.load(rstd_ptr + i, mask=i < rows, other=0.0).to(T)[:, None]
        normalised = tl.where(mask, (x - mean) * rstd, 0.0)
        weighed = grad
        if weight_ptr is not None:
            weighed = grad * weight

        # 2. Means over each row.
        mean_v = (tl.sum(v, axis=1) * inverse_width)[:, None]
        mean_weighed = (tl.sum(weighed, axis=1) * inverse_width)[:, None]
        along_v = (tl.sum(v * normalised, axis=1) * inverse_width)[:, None]
        along_weighed = (tl.sum(weighed * normalised, axis=1) * inverse_width)[:, None]
        mean_product = (tl.sum(v * weighed, axis=1) * inverse_width)[:, None]

        # 3. The gradients of the gradient and of the weight, from r P v.
        projected = rstd * (v - mean_v - normalised * along_v)
        d_grad = projected
        if weight_ptr is not None:
            d_grad = projected * weight
            d_weight += tl.where(mask, grad * projected, 0.0)
        tl.store(d_grad_ptr + offsets, d_grad, mask=mask)

        # 4. The gradient of the input: -r^2 (P(mean(a x^) v + mean(v x^) a) + x^ mean(v P a)) with a = w g, where the
        # terms along x^ are collected.
        rest = mean_product - mean_v * mean_weighed - 3.0 * along_v * along_weighed
        d_input = along_weighed * (v - mean_v) + along_v * (weighed - mean_weighed) + normalised * rest
        tl.store(d_input_ptr + offsets, -rstd * rstd * d_input, mask=mask)
    if weight_ptr is not None:
        tl.store(partial_ptr + program * width + j, tl.sum(d_weight, axis=0), mask=j < width)


def layer_norm_double_backward(
    v: Tensor, grad: Tensor, input: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor, width: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of <v, dx> with respect to the gradient, the input and the weight; a row has `width` elements."""
    v, grad, input = v.contiguous(), grad.contiguous(), input.contiguous()
    d_grad, d_input = torch.empty_like(grad), torch.empty_like(input)
    rows, block = input.numel() // width, power_of_two(width)
    rows_at_once = max(1, TILE_ELEMENTS // block)
    programs = min(ceil_div(rows, rows_at_once), wanted_programs(input))
    partial = None if weight is None else torch.empty((programs, width), dtype=mean.dtype, device=input.device)
    with on_device(input):
        layer_norm_double_backward_kernel[(programs,)](
            v_ptr=v,
            grad_ptr=grad,
            input_ptr=input,
            weight_ptr=None if weight is None else weight.contiguous(),
            mean_ptr=mean,
            rstd_ptr=rstd,
            d_grad_ptr=d_grad,
            d_input_ptr=d_input,
            partial_ptr=partial,
            rows=rows,
            width=width,
            ROWS=rows_at_once,
            BLOCK=block,
            T=accumulator(input.dtype),
            **OPTIONS,
        )
    if weight is None or partial is None:
        return d_grad, d_input, None
    return d_grad, d_input, partial.sum(0).to(weight.dtype).view_as(weight)

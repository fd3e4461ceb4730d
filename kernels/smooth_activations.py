# mypy: allow-untyped-defs
"""Triton: the second derivatives of GELU and SiLU, in one launch.

The formulas are those of `pal_fast.nn.smooth_activations`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import OPTIONS, accumulator, ceil_div, in_format_of, on_device

#: Elements per program: 8 per thread.
BLOCK = 1024


@triton.jit
def activation_double_backward_kernel(
    v_ptr,  # [N], like the other tensors
    grad_ptr,
    input_ptr,
    d_grad_ptr,
    d_input_ptr,
    size,  # N
    KIND: tl.constexpr,  # gelu, gelu_tanh or silu
    BLOCK: tl.constexpr,
    T: tl.constexpr,
):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(v_ptr + offsets, mask=offsets < size, other=0.0).to(T)
    grad = tl.load(grad_ptr + offsets, mask=offsets < size, other=0.0).to(T)
    x = tl.load(input_ptr + offsets, mask=offsets < size, other=0.0).to(T)
    if KIND == "silu":
        decay = tl.exp(-tl.abs(x))
        sigmoid = tl.where(x < 0.0, decay, 1.0) / (1.0 + decay)
        derivative = decay / ((1.0 + decay) * (1.0 + decay))
        first = sigmoid + x * derivative
        second = derivative * (2.0 + x * (1.0 - 2.0 * sigmoid))
    elif KIND == "gelu_tanh":
        square = x * x
        inner = 0.7978845608028654 * x * (1.0 + 0.044715 * square)
        slope = 0.7978845608028654 * (1.0 + 0.134145 * square)
        # tanh and 1 - tanh^2 from an exponential that cannot overflow.
        decay = tl.exp(-2.0 * tl.abs(inner))
        tanh = tl.where(inner < 0.0, -1.0, 1.0) * (1.0 - decay) / (1.0 + decay)
        derivative = 4.0 * decay / ((1.0 + decay) * (1.0 + decay))
        first = 0.5 * (1.0 + tanh) + 0.5 * x * derivative * slope
        second = derivative * (slope - x * slope * slope * tanh + 0.10703222440890037 * square)
    else:
        density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
        first = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * density
        second = density * (2.0 - x * x)
    tl.store(d_grad_ptr + offsets, v * first, mask=offsets < size)
    tl.store(d_input_ptr + offsets, v * grad * second, mask=offsets < size)


def activation_double_backward(v: Tensor, grad: Tensor, input: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The gradients of <v, g y'> with respect to g and x, for any shape."""
    if not input.is_contiguous(memory_format=torch.channels_last if input.dim() == 4 else torch.contiguous_format):
        input = input.contiguous()
    d_grad, d_input = torch.empty_like(input, dtype=grad.dtype), torch.empty_like(input)
    with on_device(input):
        activation_double_backward_kernel[(ceil_div(input.numel(), BLOCK),)](
            v_ptr=in_format_of(input, v),
            grad_ptr=in_format_of(input, grad),
            input_ptr=input,
            d_grad_ptr=d_grad,
            d_input_ptr=d_input,
            size=input.numel(),
            KIND=kind,
            BLOCK=BLOCK,
            T=accumulator(input.dtype),
            **OPTIONS,
        )
    return d_grad, d_input

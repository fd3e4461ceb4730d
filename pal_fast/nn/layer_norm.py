"""`torch.nn.LayerNorm` whose second derivative is one kernel and a sum, or some twenty operators (PyTorch: 60).

With x^ = (x - mean) r, r = 1 / sqrt(var + eps), a = w g and P y = y - mean(y) - x^ mean(y x^), means over a row:

    dx = r P a, dw = sum g x^, db = sum g        the backward of y = w x^ + b, g the gradient of y
    <v, dx> + <u, dw> + <c, db>                  differentiated, where v, u and c are the gradients of dx, dw and db:
        with respect to g: w r P v + u x^ + c
        with respect to w: sum over rows of g r P v
        with respect to x: -r^2 (P(mean(a x^) v + mean(v x^) a) + x^ mean(v P a)) + r P(u g)

r P is what PyTorch's own backward of a layer without a weight computes, in one kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pal_fast.autocast import autocasts
from pal_fast.nn import triton_derivatives
from pal_fast.nn.needed_gradients import inner, wanted_of_three
from pal_fast.reference import computing_dtype


def _projected(y: Tensor, input: Tensor, mean: Tensor, rstd: Tensor, shape: tuple[int, ...]) -> Tensor:
    """r P y."""
    if input.device.type == "cpu":  # the CPU kernel requires mean and rstd in the input's dtype
        input = input.to(mean.dtype)
    result: tuple[Tensor, ...] = torch.ops.aten.native_layer_norm_backward.default(
        y.to(input.dtype), input, shape, mean, rstd, None, None, (True, False, False)
    )
    return result[0]


def _widened(tensor: Tensor) -> Tensor:
    return tensor.to(computing_dtype(tensor.dtype))


def _by_operators(
    v: Tensor, grad: Tensor, input: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of <v, dx> with respect to g, x and w."""
    last = tuple(range(-len(shape), 0))
    normalised = (input - mean) * rstd
    weighed = grad if weight is None else grad * weight
    of_v = _projected(v, input, mean, rstd, shape)
    d_grad = of_v if weight is None else of_v * weight
    d_weight = None if weight is None else (grad * of_v).sum(tuple(range(input.dim() - len(shape)))).to(weight.dtype)
    along = (v * normalised).mean(last, keepdim=True)
    both = (weighed * normalised).mean(last, keepdim=True) * v + along * weighed
    d_input = normalised * (v * _projected(weighed, input, mean, rstd, shape)).mean(last, keepdim=True)
    d_input = (d_input + _projected(both, input, mean, rstd, shape)) * -rstd
    return d_grad.to(grad.dtype), d_input.to(input.dtype), d_weight


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...], eps: float
    ) -> Tensor:
        output, mean, rstd = torch.native_layer_norm(input, shape, weight, bias, eps)
        ctx.save_for_backward(input, weight, bias, mean, rstd)
        ctx.shape = shape
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_LayerNormBackward.apply(grad, *ctx.saved_tensors, ctx.shape, wanted_of_three(ctx)), None, None


class _LayerNormBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        rstd: Tensor,
        shape: tuple[int, ...],
        wanted: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(grad, input, weight, mean, rstd)
        ctx.shape = shape
        ctx.set_materialize_grads(False)
        result: tuple[Tensor | None, ...] = torch.ops.aten.native_layer_norm_backward.default(
            grad, input, shape, mean, rstd, weight, bias, wanted
        )
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor | None, u: Tensor | None, c: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, input, weight, mean, rstd = ctx.saved_tensors
        d_grad = d_input = d_weight = None
        if v is not None:
            rows = (v, grad, input, weight, mean, rstd, ctx.shape)
            d_grad, d_input, d_weight = triton_derivatives.layer_norm_double_backward(*rows) or _by_operators(*rows)
        if u is not None:
            of_u = u * ((input - mean) * rstd)
            d_grad = of_u if d_grad is None else d_grad + of_u
            along_u = _projected(grad * u, input, mean, rstd, ctx.shape)
            d_input = along_u if d_input is None else d_input + along_u
        if c is not None:
            d_grad = c.expand_as(grad) if d_grad is None else d_grad + c
        return None if d_grad is None else d_grad.to(grad.dtype), d_input, d_weight, *(None,) * 5


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm`: same parameters and results, and a fused second derivative.

    Args: as `torch.nn.LayerNorm`.

    A third derivative raises RuntimeError, except under torch.compile, where PyTorch's own layer is used and fused.
    """

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not input.numel():
            return super().forward(input)
        weight: Tensor | None = self.weight
        bias: Tensor | None = self.bias
        if input.device.type != "cpu" and autocasts(input):
            # Autocast runs layer_norm in float32, except on the CPU.
            input = _widened(input)
            weight, bias = (None if t is None else _widened(t) for t in (weight, bias))
        shape = tuple(self.normalized_shape)
        output: Tensor = _LayerNorm.apply(inner(input), inner(weight), inner(bias), shape, self.eps)
        return output

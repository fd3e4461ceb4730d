"""`torch.nn.GELU` whose second derivative is one kernel, or some ten operators.

With y' and y'' the derivatives of y = gelu(x), and g the gradient of y:

    dx = g y'
    <v, dx> differentiated with respect to g: v y', with respect to x: v g y''

    approximate="none":  y = x Phi(x), y'' = phi(x) (2 - x^2), Phi and phi the normal distribution and its density
    approximate="tanh":  y = x (1 + tanh u) / 2, u = k (x + c x^3)
                         y'' = (1 - tanh^2 u) (u' - x u'^2 tanh u + x u'' / 2), k = sqrt(2 / pi), c = 0.044715
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pal_fast.nn import fused

_K, _C = math.sqrt(2 / math.pi), 0.044715


def _first(grad: Tensor, input: Tensor, approximate: str) -> Tensor:
    """g y'."""
    result: Tensor = torch.ops.aten.gelu_backward.default(grad, input, approximate=approximate)
    return result


def _by_operators(v: Tensor, grad: Tensor, input: Tensor, approximate: str) -> tuple[Tensor, Tensor]:
    """The gradients of <v, g y'> with respect to g and x. In float32 at least: 1 - tanh^2 is a small difference."""
    dtype, first = input.dtype, _first(v, input, approximate)
    if input.element_size() < 4:
        v, grad, input = v.float(), grad.float(), input.float()
    square = input * input
    if approximate == "tanh":
        slope = square.mul(3 * _C * _K).add_(_K)
        tanh = (square.mul(_C * _K).add_(_K)).mul_(input).tanh_()
        second = (slope - (slope * slope).mul_(input).mul_(tanh)).add_(square, alpha=3 * _C * _K).mul_(1 - tanh * tanh)
    else:
        second = (square * -0.5).exp_().mul_(2 - square).mul_(1 / math.sqrt(2 * math.pi))
    return first, second.mul_(v).mul_(grad).to(dtype)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, approximate: str) -> Tensor:
        ctx.save_for_backward(input)
        ctx.approximate = approximate
        return nn.functional.gelu(input, approximate=approximate)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _GeluBackward.apply(grad, *ctx.saved_tensors, ctx.approximate), None


class _GeluBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, input: Tensor, approximate: str) -> Tensor:
        ctx.save_for_backward(grad, input)
        ctx.approximate = approximate
        return _first(grad, input, approximate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, Tensor, None]:
        tensors = (v, *ctx.saved_tensors, ctx.approximate)
        return *(fused.gelu_double_backward(*tensors) or _by_operators(*tensors)), None


class GELU(nn.GELU):
    """`torch.nn.GELU`: the same results, and a second derivative that is fused. Input and output have any shape.

    A third derivative raises RuntimeError, but not under torch.compile, which is given PyTorch's own layer and fuses
    that.
    """

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not input.is_floating_point():
            return super().forward(input)
        output: Tensor = _Gelu.apply(input, self.approximate)
        return output

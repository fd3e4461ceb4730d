"""`torch.nn.GELU` and `torch.nn.SiLU` whose second derivative is one kernel, or some ten operators.

With y' and y'' the derivatives of the activation y(x), and g the gradient of y:

    dx = g y'
    <v, dx> differentiated with respect to g: v y', with respect to x: v g y''

    gelu       y = x Phi(x), y'' = phi(x) (2 - x^2), Phi and phi the normal distribution and its density
    gelu_tanh  y = x (1 + tanh u) / 2, u = k (x + c x^3), k = sqrt(2 / pi), c = 0.044715
               y'' = (1 - tanh^2 u) (u' - x u'^2 tanh u + x u'' / 2)
    silu       y = x s, s = 1 / (1 + exp(-x)), y'' = s (1 - s) (2 + x (1 - 2 s))
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pal_fast.nn import triton_derivatives
from pal_fast.reference import computing_dtype

#: GELU's `approximate` of each kind.
_APPROXIMATE = {"gelu": "none", "gelu_tanh": "tanh"}
_KINDS = {approximate: kind for kind, approximate in _APPROXIMATE.items()}
_K, _C = math.sqrt(2 / math.pi), 0.044715


def _first(grad: Tensor, input: Tensor, kind: str) -> Tensor:
    """g y'."""
    result: Tensor
    if kind == "silu":
        result = torch.ops.aten.silu_backward.default(grad, input)
    else:
        result = torch.ops.aten.gelu_backward.default(grad, input, approximate=_APPROXIMATE[kind])
    return result


def _second(x: Tensor, kind: str) -> Tensor:
    """y''."""
    if kind == "silu":
        s = torch.sigmoid(x)
        return (1 - 2 * s).mul_(x).add_(2).mul_(s).mul_(1 - s)
    square = x * x
    if kind == "gelu":
        return (square * -0.5).exp_().mul_(2 - square).mul_(1 / math.sqrt(2 * math.pi))
    slope = square.mul(3 * _C * _K).add_(_K)
    tanh = (square.mul(_C * _K).add_(_K)).mul_(x).tanh_()
    return (slope - (slope * slope).mul_(x).mul_(tanh)).add_(square, alpha=3 * _C * _K).mul_(1 - tanh * tanh)


def _by_operators(v: Tensor, grad: Tensor, input: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The gradients of <v, g y'> with respect to g and x. In at least float32: 1 - tanh^2 is a small difference."""
    second = _second(input.to(computing_dtype(input.dtype)), kind).mul_(v).mul_(grad)
    return _first(v, input, kind), second.to(input.dtype)


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, kind: str) -> Tensor:
        ctx.save_for_backward(input)
        ctx.kind = kind
        if kind == "silu":
            return nn.functional.silu(input)
        return nn.functional.gelu(input, approximate=_APPROXIMATE[kind])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _ActivationBackward.apply(grad, *ctx.saved_tensors, ctx.kind), None


class _ActivationBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, input: Tensor, kind: str) -> Tensor:
        ctx.save_for_backward(grad, input)
        ctx.kind = kind
        return _first(grad, input, kind)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, Tensor, None]:
        tensors = (v, *ctx.saved_tensors, ctx.kind)
        return *(triton_derivatives.activation_double_backward(*tensors) or _by_operators(*tensors)), None


def _is_plain(input: Tensor) -> bool:
    """Whether to use PyTorch's own: under torch.compile, which fuses it, and without gradients."""
    return torch.compiler.is_compiling() or not torch.is_grad_enabled() or not input.is_floating_point()


class GELU(nn.GELU):
    """`torch.nn.GELU`: the same results, and a fused second derivative. Input and output have any shape.

    A third derivative raises RuntimeError, except under torch.compile, where PyTorch's own layer is used and fused.
    """

    def forward(self, input: Tensor) -> Tensor:
        if _is_plain(input):
            return super().forward(input)
        output: Tensor = _Activation.apply(input, _KINDS[self.approximate])
        return output


class SiLU(nn.SiLU):
    """`torch.nn.SiLU`: the same results, and fused derivatives. Input and output have any shape.

    `inplace` is ignored when gradients are computed, for which PyTorch also keeps the input. A third derivative raises
    RuntimeError, except under torch.compile, where PyTorch's own layer is used and fused.
    """

    def forward(self, input: Tensor) -> Tensor:
        if _is_plain(input):
            return super().forward(input)
        output: Tensor = _Activation.apply(input, "silu")
        return output

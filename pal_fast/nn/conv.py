"""`torch.nn.Conv2d` whose second derivative consists of three ordinary convolutions.

PyTorch differentiates a convolution's backward with respect to the weight by a forward convolution over
transposed tensors, with a kernel as large as the layer's output. That is the weight gradient of an ordinary
backward, for which cuDNN and oneDNN have dedicated kernels:

    dx = dgrad(g, w), dw = wgrad(g, x)      the backward of y = conv(x, w), g the gradient of y
    <v, dx> + <u, dw>                       differentiated, where v and u are the gradients of dx and dw:
        with respect to g: conv(v, w) + conv(x, u)
        with respect to w: wgrad(g, v)
        with respect to x: dgrad(g, u)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pal_fast.autocast import cast
from pal_fast.nn import traced_conv
from pal_fast.nn.needed_gradients import inner, wanted_of_three
from pal_fast.nn.plain_conv import Geometry, conv, gradients


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.geometry = geometry
        return conv(input, weight, bias, geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        return *_ConvolutionBackward.apply(grad, input, weight, ctx.geometry, wanted_of_three(ctx)), None


class _ConvolutionBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, wanted: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(grad, input, weight)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        return tuple(gradients(grad, input, weight, geometry, wanted))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor | None, u: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, input, weight = ctx.saved_tensors
        need_grad, need_input, need_weight = ctx.needs_input_grad[:3]
        d_grad = d_input = d_weight = None
        if need_grad:
            if v is not None:
                d_grad = conv(v, weight, b, ctx.geometry)
            if u is not None:
                of_u = conv(input, u, b if v is None else None, ctx.geometry)
                d_grad = of_u if d_grad is None else d_grad.add_(of_u)
            if v is None and u is None and b is not None:
                d_grad = b[:, None, None].expand_as(grad)
        if need_input and u is not None:
            d_input = gradients(grad, input, u, ctx.geometry, (True, False, False))[0]
        if need_weight and v is not None:
            d_weight = gradients(grad, v, weight, ctx.geometry, (False, True, False))[1]
        return d_grad, d_input, d_weight, None, None


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`: same parameters and results, and a second derivative at the cost of three convolutions.

    Args: as `torch.nn.Conv2d`.

    A third derivative raises RuntimeError, except under torch.compile, which uses the operators of `traced_conv`.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding = self.padding
        plain = self.padding_mode != "zeros" or isinstance(padding, str) or input.ndim != 4
        if plain or not torch.is_grad_enabled():
            return super()._conv_forward(input, weight, bias)
        assert not isinstance(padding, str)
        geometry = Geometry(self.stride, padding, self.dilation, self.groups)
        input, weight, bias = cast(input), cast(weight), cast(bias)
        if torch.compiler.is_compiling():
            return traced_conv.convolution(input, weight, bias, geometry)
        output: Tensor = _Convolution.apply(inner(input), inner(weight), inner(bias), geometry)
        return output

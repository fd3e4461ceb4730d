"""Convolution under torch.compile: three operators, closed under differentiation, that decompose into PyTorch's own.

    conv(x, w), dgrad(g, w), wgrad(g, x)        y, the gradient of x, the gradient of w

All three are bilinear, and the derivatives of each are the other two (formulas in `conv.py`), so a compiler that traces
a gradient of a gradient sees only ordinary convolutions and their ordinary backward. They are separate operators
because a traced pass cannot know which gradients will be needed; the compiler eliminates the unused ones. Each is
decomposed into the aten operator below autograd, so that the compiler sees the convolutions it knows.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from pal_fast._derivative import register_derivative
from pal_fast.nn.plain_conv import Geometry, conv, gradients

_NAMESPACE: Final = "pal_fast_nn"
_GEOMETRY: Final = "int[] stride, int[] padding, int[] dilation, int groups"
_SCHEMAS: Final = (
    f"conv(Tensor input, Tensor weight, Tensor? bias, {_GEOMETRY}) -> Tensor",
    # dgrad reads only the shape of input, wgrad only that of weight.
    f"dgrad(Tensor grad, Tensor input, Tensor weight, {_GEOMETRY}) -> Tensor",
    f"wgrad(Tensor grad, Tensor input, Tensor weight, {_GEOMETRY}) -> Tensor",
)
#: Every device that PyTorch compiles for, and Meta: the operators are also traced on meta tensors.
_KEYS: Final = tuple(f"Autograd{device}" for device in ("CPU", "CUDA", "XPU", "MPS", "Meta", "PrivateUse1"))

_libraries: list[Any] = []  # An operator's registration lasts only as long as its Library object.


def _conv(input: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    return conv(input, weight, bias, Geometry(*geometry))


def _dgrad(grad: Tensor, input: Tensor, weight: Tensor, *geometry: Any) -> Tensor:
    return gradients(grad, input, weight, Geometry(*geometry), (True, False, False))[0]


def _wgrad(grad: Tensor, input: Tensor, weight: Tensor, *geometry: Any) -> Tensor:
    return gradients(grad, input, weight, Geometry(*geometry), (False, True, False))[1]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    first, second, third, *ctx.geometry = inputs
    ctx.save_for_backward(first, second, third)


def _of_conv(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, weight, _ = ctx.saved_tensors
    need_input, need_weight, need_bias = ctx.needs_input_grad[:3]
    operators = torch.ops.pal_fast_nn
    return (
        operators.dgrad.default(grad, input, weight, *ctx.geometry) if need_input else None,
        operators.wgrad.default(grad, input, weight, *ctx.geometry) if need_weight else None,
        grad.sum((0, 2, 3)) if need_bias else None,
        *(None,) * 4,
    )


def _of_dgrad(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
    grad, _, weight = ctx.saved_tensors
    need_grad, _, need_weight = ctx.needs_input_grad[:3]
    operators = torch.ops.pal_fast_nn
    return (
        operators.conv.default(v, weight, None, *ctx.geometry) if need_grad else None,
        None,
        operators.wgrad.default(grad, v, weight, *ctx.geometry) if need_weight else None,
        *(None,) * 4,
    )


def _of_wgrad(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
    grad, input, _ = ctx.saved_tensors
    need_grad, need_input, _ = ctx.needs_input_grad[:3]
    operators = torch.ops.pal_fast_nn
    return (
        operators.conv.default(input, u, None, *ctx.geometry) if need_grad else None,
        operators.dgrad.default(grad, input, u, *ctx.geometry) if need_input else None,
        *(None,) * 5,
    )


def _register() -> None:
    library = torch.library.Library(_NAMESPACE, "DEF")
    _libraries.append(library)
    for schema, compute, derivative in zip(
        _SCHEMAS, (_conv, _dgrad, _wgrad), (_of_conv, _of_dgrad, _of_wgrad), strict=True
    ):
        name = library.define(schema)
        library.impl(name, compute, "CompositeImplicitAutograd")
        register_derivative(f"{_NAMESPACE}::{name}", derivative, setup_context=_keep, keys=_KEYS)


_register()


def convolution(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """`torch.nn.functional.conv2d` of (B, C, H, W), differentiable to any order by ordinary convolutions."""
    output: Tensor = torch.ops.pal_fast_nn.conv.default(input, weight, bias, *geometry)
    return output

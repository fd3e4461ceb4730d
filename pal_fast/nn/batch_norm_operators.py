"""Batch normalisation's operators as PyTorch sees them: fake kernels, autograd to second order, and one entry point.

Four operators, in `pal_fast` (compiled) and `pal_fast_triton`: the statistics of a batch, the normalisation with
these, its backward, and the derivative of that backward. Their formulas are in csrc/batch_norm_problem.h. In training
the normalisation is differentiated through the statistics, which are a function of its input too; therefore
`batch_norm` computes both, and the two operators are not exposed separately.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor
from torch.library import register_fake

from pal_fast import dispatch
from pal_fast._derivative import register_derivative
from pal_fast.reference import computing_dtype

_registered: set[str] = set()

# (device type, index) -> namespace, or "" for PyTorch's own. A dict, because torch.compile can trace the look-up.
_namespace_on: dict[tuple[str, int | None], str] = {}


def namespace_on(device: torch.device) -> str:
    """The namespace whose operators support `device`, registered and ready to call; "" if there is none."""
    key = (device.type, device.index)
    if key not in _namespace_on:
        _namespace_on[key] = _find_namespace(device)
    return _namespace_on[key]


def _find_namespace(device: torch.device) -> str:
    name = dispatch.choose(None, device)
    if name == "reference":
        return ""
    namespace = dispatch.namespace(name, device)
    if name == "triton":
        define_triton()
    register(namespace)
    return namespace


def define_triton() -> None:
    """Defines batch normalisation in `pal_fast_triton`, whose other operators must already be defined."""
    importlib.import_module("pal_fast.kernels.batch_norm").register()


def register(namespace: str) -> None:
    """Adds fake kernels and autograd to the batch normalisation of `namespace`, which must already be defined."""
    if namespace in _registered:
        return
    _registered.add(namespace)
    _register_fakes(namespace)
    _register_first_derivative(namespace)
    _register_second_derivative(namespace)


def _per_channel(input: Tensor, *rows: int) -> Tensor:
    return input.new_empty((*rows, input.shape[1]), dtype=computing_dtype(input.dtype))


def _register_fakes(namespace: str) -> None:
    @register_fake(f"{namespace}::batch_norm_statistics")
    def statistics(input: Tensor, *options: Any) -> Tensor:
        return _per_channel(input, 2)

    @register_fake(f"{namespace}::batch_norm")
    def forward(input: Tensor, *options: Any) -> Tensor:
        return torch.empty_like(input)

    @register_fake(f"{namespace}::batch_norm_backward")
    def backward(grad: Tensor, input: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
        training, _, need_input, need_sums = options[-4:]
        return (
            torch.empty_like(input) if need_input else input.new_empty(0),
            _per_channel(input, 2) if training or need_sums else input.new_empty(0),
        )

    @register_fake(f"{namespace}::batch_norm_double_backward")
    def double_backward(
        grad_grad_input: Tensor | None, grad_sums: Tensor | None, grad: Tensor, input: Tensor, *options: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        need_input = options[-1]
        return (
            torch.empty_like(input),
            torch.empty_like(input) if need_input else input.new_empty(0),
            _per_channel(input),
        )


def _register_first_derivative(namespace: str) -> None:
    operators = getattr(torch.ops, namespace)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.training, ctx.relu = inputs
        ctx.save_for_backward(*tensors)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, bias, statistics = ctx.saved_tensors
        need_input, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_input, sums = operators.batch_norm_backward.default(
            _in_format_of(input, grad),
            input,
            weight,
            bias,
            statistics,
            ctx.training,
            ctx.relu,
            need_input,
            need_weight or need_bias,
        )
        return (
            grad_input if need_input else None,
            sums[1] if need_weight else None,
            sums[0] if need_bias else None,
            None,
            None,
            None,
        )

    register_derivative(f"{namespace}::batch_norm", backward, setup_context=setup_context)


def _register_second_derivative(namespace: str) -> None:
    operators = getattr(torch.ops, namespace)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.training, ctx.relu, _, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, output[1])

    def backward(ctx: Any, grad_grad_input: Tensor | None, grad_sums: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_grad_input is None and grad_sums is None:
            return (None,) * 9
        grad, input, weight, bias, statistics, sums = ctx.saved_tensors
        need_grad, need_input, need_weight = ctx.needs_input_grad[:3]
        grad_grad, grad_input, grad_weight = operators.batch_norm_double_backward.default(
            None if grad_grad_input is None else _in_format_of(input, grad_grad_input),
            None if grad_sums is None else grad_sums.contiguous(),
            grad,
            input,
            weight,
            bias,
            statistics,
            sums,
            ctx.training,
            ctx.relu,
            need_input,
        )
        return (
            grad_grad if need_grad else None,
            grad_input if need_input else None,
            grad_weight if need_weight else None,
            *(None,) * 6,
        )

    register_derivative(f"{namespace}::batch_norm_backward", backward, setup_context=setup_context)

    def refuse(ctx: Any, *gradients: Tensor) -> None:
        raise RuntimeError(
            "pal_fast's batch normalisation is only differentiable twice; for a third derivative use "
            "torch.nn.BatchNorm2d (restore() of pal_fast.nn.prepare_head's handle puts it back)"
        )

    register_derivative(f"{namespace}::batch_norm_double_backward", refuse)


def _in_format_of(input: Tensor, other: Tensor) -> Tensor:
    """`other` in the memory format (contiguous or channels_last) and dtype of `input`; a copy only if necessary."""
    layout = torch.contiguous_format if input.is_contiguous() else torch.channels_last
    return other.to(input.dtype).contiguous(memory_format=layout)


def batch_norm(
    namespace: str,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    training: bool,
    momentum: float,
    eps: float,
    relu: bool,
) -> Tensor:
    """`torch.nn.functional.batch_norm`, with a ReLU after it if `relu`, by the operators of `namespace`.

    Args:
        input: (B, C), (B, C, L) or (B, C, H, W), float16, bfloat16, float32 or float64. Contiguous and
            channels_last are read in place.
        weight, bias, running_mean, running_var: (C,) of any floating dtype, or None.
        training: normalise with the batch's statistics; running_mean and running_var, if given, are updated.
    """
    operators = getattr(torch.ops, namespace)
    dtype = computing_dtype(input.dtype)
    if not input.is_contiguous() and not input.is_contiguous(memory_format=_channels_last(input)):
        input = input.contiguous()
    weight = None if weight is None else weight.to(dtype).contiguous()
    bias = None if bias is None else bias.to(dtype).contiguous()
    mean = None if running_mean is None else running_mean.to(dtype)
    variance = None if running_var is None else running_var.to(dtype)
    statistics = operators.batch_norm_statistics.default(input.detach(), mean, variance, training, momentum, eps)
    if training:
        _write_back(running_mean, mean)
        _write_back(running_var, variance)
    output: Tensor = operators.batch_norm.default(input, weight, bias, statistics, training, relu)
    return output


def _write_back(buffer: Tensor | None, computed: Tensor | None) -> None:
    """Copies an updated statistic into its buffer, if the buffer is not of the computing dtype itself."""
    if buffer is not None and computed is not None and buffer is not computed:
        buffer.copy_(computed)


def _channels_last(input: Tensor) -> torch.memory_format:
    return torch.channels_last if input.ndim == 4 else torch.contiguous_format

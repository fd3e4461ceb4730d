# mypy: allow-untyped-defs
"""Triton: batch normalisation with a fused second derivative, the four operators of csrc/batch_norm.cpp.

Each operator is at most a reduction kernel, whose programs store partial sums, and an elementwise kernel, whose
programs first add the partial sums of their channels in a fixed order, without atomics or waiting. Launches: statistics
2 (1 outside training), forward 1, backward 2 (1 if no sums are needed), second derivative 2.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.library import Library

from .batch_norm_kernels import derivative_kernel, forward_kernel, sums_kernel
from .batch_norm_plan import parts_of
from .batch_norm_statistics import final_statistics_kernel, statistics_kernel
from .launch import OPTIONS, accumulator, ceil_div, high_and_low, in_format_of, interpreting, on_device, power_of_two

NAMESPACE = "pal_fast_triton"

SCHEMAS = {
    "batch_norm_statistics": (
        "(Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_var, bool training, float momentum, float eps) "
        "-> Tensor"
    ),
    "batch_norm": (
        "(Tensor input, Tensor? weight, Tensor? bias, Tensor statistics, bool training, bool relu) -> Tensor"
    ),
    "batch_norm_backward": (
        "(Tensor grad, Tensor input, Tensor? weight, Tensor? bias, Tensor statistics, bool training, bool relu, "
        "bool need_input, bool need_sums) -> (Tensor, Tensor)"
    ),
    "batch_norm_double_backward": (
        "(Tensor? grad_grad_input, Tensor? grad_sums, Tensor grad, Tensor input, Tensor? weight, Tensor? bias, "
        "Tensor statistics, Tensor sums, bool training, bool relu, bool need_input) -> (Tensor, Tensor, Tensor)"
    ),
}

#: Elements of a tile of partial sums (splits x columns); and the same for the statistics, which are added in float64.
SUMS_AT_ONCE = 4096
PARTS_AT_ONCE = 2048


def _per_channel(input: Tensor, *rows: int) -> Tensor:
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    return input.new_empty((*rows, input.shape[1]), dtype=dtype)


def batch_norm_statistics(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """[2, C]: mean and 1/sqrt(var + eps), of the batch if training, else from the running statistics.

    In training, running statistics that are given are updated in place.
    """
    parts = parts_of(input, tensors=1)
    statistics = _per_channel(input, 2)
    partial = _per_channel(input, parts.splits, 3) if training else statistics
    block_s = power_of_two(parts.splits)
    block_c = min(128, max(1, PARTS_AT_ONCE // block_s))
    with on_device(input):
        if training:
            statistics_kernel[parts.grid](input, partial, **parts.arguments(input), **parts.padded_sizes())
        final_statistics_kernel[(ceil_div(parts.channels, block_c),)](
            statistics,
            partial,
            running_mean,
            running_var,
            parts.channels,
            parts.count,
            parts.splits,
            *high_and_low(momentum),
            *high_and_low(eps),
            TRAINING=training,
            BLOCK_C=block_c,
            BLOCK_S=block_s,
            T=accumulator(input.dtype),
            **OPTIONS,
        )
    return statistics


def batch_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, statistics: Tensor, training: bool, relu: bool
) -> Tensor:
    """weight * (input - mean) * r + bias, through a ReLU if `relu`, in the input's shape and format."""
    parts = parts_of(input, tensors=1, tiles=2)
    output = torch.empty_like(input)
    with on_device(input):
        forward_kernel[parts.grid](output, input, weight, bias, statistics, RELU=relu, **parts.arguments(input))
    return output


def batch_norm_backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    training: bool,
    relu: bool,
    need_input: bool,
    need_sums: bool,
) -> tuple[Tensor, Tensor]:
    """(dx, [2, C] gradients of bias and weight); an output that is not needed has no elements."""
    reduces = training or need_sums
    output = torch.empty_like(input) if need_input else None
    sums = _per_channel(input, 2) if reduces else None
    _launch(input, grad, None, weight, bias, statistics, training, relu, False, reduces, output, None, sums)
    empty = input.new_empty(0)
    return empty if output is None else output, empty if sums is None else sums


def batch_norm_double_backward(
    grad_grad_input: Tensor | None,
    grad_sums: Tensor | None,
    grad: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    sums: Tensor,
    training: bool,
    relu: bool,
    need_input: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of (grad, input, weight), given the gradients of the backward's dx and sums."""
    output = torch.empty_like(input)
    second = torch.empty_like(input) if need_input else None
    d_weight = _per_channel(input)
    known = (sums if sums.numel() else None, grad_sums)
    _launch(
        input,
        grad,
        grad_grad_input,
        weight,
        bias,
        statistics,
        training,
        relu,
        True,
        True,
        output,
        second,
        d_weight,
        known,
    )
    return output, input.new_empty(0) if second is None else second, d_weight


def _launch(
    input: Tensor,
    grad: Tensor,
    grad_grad: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    training: bool,
    relu: bool,
    of_backward: bool,
    reduces: bool,
    output: Tensor | None,
    second: Tensor | None,
    per_channel: Tensor | None,
    known: tuple[Tensor | None, Tensor | None] = (None, None),
) -> None:
    """Launches the reduction and the elementwise kernel of the backward, or of the second derivative."""
    parts = parts_of(input, tensors=3 if of_backward else 2)
    partial = _per_channel(input, parts.splits, 3) if reduces else statistics
    layer = (input, in_format_of(input, grad), in_format_of(input, grad_grad), weight, bias, statistics)
    flags = {"SECOND": of_backward, "RELU": relu}
    with on_device(input):
        if reduces:
            sums_kernel[parts.grid](partial, *layer, **flags, **parts.arguments(input), **parts.padded_sizes())
        derivative_kernel[parts.grid](
            output,
            second,
            per_channel,
            partial,
            *known,
            *layer,
            count=parts.count,
            splits=parts.splits if reduces else 0,
            TRAINING=training,
            BLOCK_S=min(power_of_two(parts.splits), max(1, SUMS_AT_ONCE // parts.columns)),
            **flags,
            **parts.arguments(input),
        )


@lru_cache(maxsize=1)
def register() -> Library:
    """Adds the operators to `torch.ops.pal_fast_triton` for CUDA tensors and, under the interpreter, CPU tensors."""
    library = Library(NAMESPACE, "FRAGMENT")
    for implementation in (batch_norm_statistics, batch_norm, batch_norm_backward, batch_norm_double_backward):
        name = implementation.__name__
        library.define(name + SCHEMAS[name])
        library.impl(name, implementation, "CUDA")
        if interpreting():
            library.impl(name, implementation, "CPU")
    return library

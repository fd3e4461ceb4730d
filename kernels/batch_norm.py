# mypy: allow-untyped-defs
"""Triton: batch normalisation with a fused second derivative, the four operators of csrc/batch_norm.cpp.

Each is at most a reduction, whose programs leave partial sums, and an elementwise kernel, whose programs first add up
those of their channels, in a fixed order: nothing is atomic, nothing waits. Launches: statistics 2 (1 outside
training), forward 1, backward and second derivative 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.library import Library

from .batch_norm_kernels import (
    derivative_kernel,
    final_statistics_kernel,
    forward_kernel,
    statistics_kernel,
    sums_kernel,
)
from .launch import (
    OPTIONS,
    accumulator,
    ceil_div,
    high_and_low,
    in_format_of,
    interpreting,
    on_device,
    power_of_two,
    wanted_programs,
)

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

#: Elements of a tile, and of a channel that a program should have before another one helps.
TILE = 2048
ELEMENTS_PER_PROGRAM = 8192
#: Channels of a tile where they are innermost.
WIDEST = 64
#: Every program of an elementwise kernel reads all parts' sums of its channels.
MOST_SPLITS = 64


@dataclass(frozen=True)
class Parts:
    """How a layer (B, C, L) is cut into programs."""

    channels: int
    count: int  # M
    length: int
    innermost: bool
    block_m: int
    block_c: int
    per_split: int
    splits: int
    tiles: int  # of channels

    @property
    def grid(self) -> tuple[int, int]:
        return self.tiles, self.splits

    def arguments(self, input: Tensor) -> dict[str, object]:
        """The kernel arguments that describe it."""
        return {
            "channels": self.channels,
            "count": self.count,
            "per_split": self.per_split,
            "LENGTH": self.length,
            "INNERMOST": self.innermost,
            "BLOCK_M": self.block_m,
            "BLOCK_C": self.block_c,
            "T": accumulator(input.dtype),
            **OPTIONS,
        }


def parts_of(input: Tensor) -> Parts:
    channels = input.shape[1]
    count = input.numel() // channels
    length = count // input.shape[0]
    innermost = length == 1 or not input.is_contiguous()
    block_c = min(WIDEST, power_of_two(channels)) if innermost else 1
    tiles = ceil_div(channels, block_c)
    block_m = min(max(1, TILE // block_c), power_of_two(count))
    useful = max(1, count * block_c // ELEMENTS_PER_PROGRAM)
    splits = min(MOST_SPLITS, useful, ceil_div(wanted_programs(input), tiles))
    per_split = ceil_div(ceil_div(count, splits), block_m) * block_m
    return Parts(channels, count, length, innermost, block_m, block_c, per_split, ceil_div(count, per_split), tiles)


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
    """[2, C] mean and 1/sqrt(var + eps), of the batch (the running ones, if given, move) or the running ones."""
    parts = parts_of(input)
    statistics = _per_channel(input, 2)
    partial = _per_channel(input, parts.splits, 3) if training else statistics
    block = 128
    with on_device(input):
        if training:
            statistics_kernel[parts.grid](input, partial, **parts.arguments(input))
        final_statistics_kernel[(ceil_div(parts.channels, block),)](
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
            BLOCK_C=block,
            T=accumulator(input.dtype),
            **OPTIONS,
        )
    return statistics


def batch_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, statistics: Tensor, training: bool, relu: bool
) -> Tensor:
    """weight * (input - mean) * r + bias, of the input's shape and format, and the ReLU of it."""
    parts = parts_of(input)
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
    """(dx, [2, C] gradients of bias and weight); what is not needed has no elements."""
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
    """The gradients of (grad, input, weight), given those of the backward's dx and sums."""
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
    """The reduction and the elementwise kernel of the forward's derivative, or of the backward's."""
    parts = parts_of(input)
    partial = _per_channel(input, parts.splits, 3) if reduces else statistics
    layer = (input, in_format_of(input, grad), in_format_of(input, grad_grad), weight, bias, statistics)
    flags = {"SECOND": of_backward, "RELU": relu}
    with on_device(input):
        if reduces:
            sums_kernel[parts.grid](partial, *layer, **flags, **parts.arguments(input))
        derivative_kernel[parts.grid](
            output,
            second,
            per_channel,
            partial,
            *known,
            *layer,
            splits=parts.splits if reduces else 0,
            TRAINING=training,
            BLOCK_S=power_of_two(parts.splits),
            **flags,
            **parts.arguments(input),
        )


@lru_cache(maxsize=1)
def register() -> Library:
    """Adds the operators to `torch.ops.pal_fast_triton`, for CUDA tensors and, interpreted, for CPU tensors."""
    library = Library(NAMESPACE, "FRAGMENT")
    for implementation in (batch_norm_statistics, batch_norm, batch_norm_backward, batch_norm_double_backward):
        name = implementation.__name__
        library.define(name + SCHEMAS[name])
        library.impl(name, implementation, "CUDA")
        if interpreting():
            library.impl(name, implementation, "CPU")
    return library

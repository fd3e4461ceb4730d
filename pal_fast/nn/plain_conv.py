"""PyTorch's convolution and its ordinary backward, below autograd: the parts of the eager and traced derivatives."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Geometry(NamedTuple):
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def conv(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    stride, padding, dilation, groups = geometry
    result: Tensor = torch.ops.aten.convolution.default(
        input, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups
    )
    return result


def gradients(
    grad: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """(dgrad, wgrad, sum of grad per channel), where `wanted`."""
    stride, padding, dilation, groups = geometry
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward.default(
        grad, input, weight, [weight.shape[0]], stride, padding, dilation, False, [0] * len(stride), groups, wanted
    )
    return result

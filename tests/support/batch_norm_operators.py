"""Test inputs of batch normalisation's four operators, and their results."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from support.kink import clear_of_the_kink
from support.triton_launches import counted_launches

NAMES = (
    "statistics", "running_mean", "running_var", "output", "dx", "sums", "grad_grad", "grad_input", "grad_weight",
)  # fmt: skip


def outputs(
    namespace: str,
    tensors: list[Tensor],
    vectors: list[Tensor],
    grad_sums: Tensor | None,
    training: bool,
    relu: bool,
    launches: dict[str, int] | None = None,
) -> list[Tensor]:
    """What the four operators return, in the order of NAMES; `launches` receives the kernel count of each."""

    def call(name: str, *arguments: object) -> Any:
        operator = getattr(getattr(torch.ops, namespace), name)
        if launches is None:
            return operator(*arguments)
        with counted_launches(tensors[0].device.type) as names:
            result = operator(*arguments)
        launches[name] = max(launches.get(name, 0), len(names))
        return result

    input, grad, v = tensors
    weight, bias, mean, variance = (vector.clone() for vector in vectors)
    statistics = call("batch_norm_statistics", input, mean, variance, training, 0.1, 1e-5)
    output = call("batch_norm", input, weight, bias, statistics, training, relu)
    arguments = (grad, input, weight, bias, statistics)
    dx, sums = call("batch_norm_backward", *arguments, training, relu, True, True)
    second = call("batch_norm_double_backward", v, grad_sums, *arguments, sums, training, relu, True)
    return [statistics, mean, variance, output, dx, sums, *second]


def inputs(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format = torch.contiguous_format
) -> tuple[list[Tensor], list[Tensor]]:
    """input, grad and v of `dtype`, clear of the ReLU's kink; weight, bias, running mean and variance."""
    computing = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = [(torch.randn(shape) + shift).to(dtype).to(memory_format=layout) for shift in (3, 0, 0)]
    vectors = [torch.rand(shape[1], dtype=computing) + shift for shift in (-0.5, -0.5, 0.0, 0.5)]
    tensors[0] = clear_of_the_kink(tensors[0], vectors)
    return tensors, vectors

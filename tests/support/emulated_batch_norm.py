"""Batch normalisation's emulated CUDA kernels behind the operators' own schemas (see support.emulated)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pal_fast.reference import computing_dtype
from support.emulated import launches, machine, module, poisoned


def _shape(input: Tensor) -> tuple[int, int, int, bool]:
    channels_last = input.dim() == 4 and not input.is_contiguous()
    return (*input.shape[:2], math.prod(input.shape[2:]), channels_last)


def _aligned(*tensors: Tensor | None) -> bool:
    return all(tensor is None or tensor.data_ptr() % 16 == 0 for tensor in tensors)


def plan(input: Tensor, directory: str, *others: Tensor | None) -> tuple[str, bool, int, int, int]:
    """The form, whether vectors are taken, how many splits, rows of `partial`, tickets."""
    given = (_shape(input), str(input.dtype), _aligned(input, *others), machine["processors"])
    return module("batch_norm", directory).plan(*given)  # type: ignore[no-any-return]


def operators(directory: str) -> dict[str, Any]:
    kernels = module("batch_norm", directory)

    def run(
        name: str, input: Tensor, training: bool, relu: bool, tensors: dict[str, Any], *momentum_and_eps: float
    ) -> None:
        dtype = computing_dtype(input.dtype)
        given = [tensors.get("grad"), tensors.get("grad_grad")]
        _, _, splits, rows, tickets = plan(input, directory, *given)
        tensors = {"input": input} | tensors
        counts = torch.zeros(tickets, dtype=torch.int32)
        if splits > 1:
            tensors |= {"partial": poisoned(input, (rows, input.shape[1]), dtype), "tickets": counts}
        launches[name] = kernels.run(
            name, tensors, _shape(input), str(input.dtype), training, relu, *(momentum_and_eps or (0.0, 0.0)),
            _aligned(input, *given), machine["processors"], machine["seed"],
        )  # fmt: skip
        assert not counts.any(), "the tickets are not back at zero"

    def per_channel(input: Tensor, *rows: int) -> Tensor:
        return poisoned(input, (*rows, input.shape[1]), computing_dtype(input.dtype))

    def layer(input: Tensor, needed: bool) -> Tensor:
        return torch.full_like(input, float("nan")) if needed else input.new_empty(0)

    def statistics(input: Tensor, mean: Any, variance: Any, training: bool, momentum: float, eps: float) -> Tensor:
        found = per_channel(input, 2)
        tensors = {"running_mean": mean, "running_variance": variance, "statistics": found}
        run("batch_norm_statistics", input, training, False, tensors, momentum, eps)
        return found

    def forward(input: Tensor, weight: Any, bias: Any, statistics: Tensor, training: bool, relu: bool) -> Tensor:
        output = layer(input, True)
        tensors = {"weight": weight, "bias": bias, "statistics": statistics, "output": output}
        run("batch_norm", input, training, relu, tensors)
        return output

    def backward(
        grad: Tensor, input: Tensor, weight: Any, bias: Any, statistics: Tensor, training: bool, relu: bool,
        need_input: bool, need_sums: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        d_input = layer(input, need_input)
        sums = per_channel(input, 2) if training or need_sums else input.new_empty(0)
        tensors = {"grad": grad, "weight": weight, "bias": bias, "statistics": statistics, "output": d_input}
        run("batch_norm_backward", input, training, relu, tensors | {"channel_output": sums})
        return d_input, sums

    def double_backward(
        grad_grad: Any, grad_sums: Any, grad: Tensor, input: Tensor, weight: Any, bias: Any, statistics: Tensor,
        sums: Tensor, training: bool, relu: bool, need_input: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        d_grad, d_input, d_weight = layer(input, True), layer(input, need_input), per_channel(input)
        tensors = {"grad_grad": grad_grad, "grad_sums": grad_sums, "grad": grad, "weight": weight, "bias": bias}
        tensors |= {"statistics": statistics, "sums": sums, "channel_output": d_weight}
        tensors |= {"output": d_grad, "second_output": d_input}
        run("batch_norm_double_backward", input, training, relu, tensors)
        return d_grad, d_input, d_weight

    return {
        "batch_norm_statistics": statistics,
        "batch_norm": forward,
        "batch_norm_backward": backward,
        "batch_norm_double_backward": double_backward,
    }

"""Inputs of a batch normalisation that rounding cannot move across the kink of the ReLU after it."""

from __future__ import annotations

import torch
from torch import Tensor


def clear_of_the_kink(input: Tensor, vectors: list[Tensor]) -> Tensor:
    """`input`, moved where its normalisation is so near 0 that rounding decides on which side of the ReLU it lies."""
    shape = (1, -1, *(1,) * (input.ndim - 2))
    weight, bias, running_mean, running_var = (vector.double().view(shape) for vector in vectors)
    dims = [d for d in range(input.ndim) if d != 1]
    for _ in range(100):
        x = input.double()
        near = torch.zeros_like(x, dtype=torch.bool)
        for mean, variance in (
            (x.mean(dims, keepdim=True), x.var(dims, correction=0, keepdim=True)),
            (running_mean, running_var),
        ):
            near |= ((x - mean) * (variance + 1e-5).rsqrt() * weight + bias).abs() < 1e-4
        if not near.any():
            return input
        input = torch.where(near, input + 0.1, input)
    raise AssertionError("a channel's weight and bias are next to 0")

"""Run as a script under TRITON_INTERPRET=1: the Triton batch normalisation against the compiled one, as JSON.

A process of its own, because triton settles at its first import whether it interprets.
"""

from __future__ import annotations

import itertools
import json
import sys

import torch
from torch import Tensor

from pal_fast import dispatch
from pal_fast.nn import ops

SHAPES = [(6, 7), (4, 5, 7, 7), (3, 70, 33, 5), (2, 3, 64, 70)]
NAMES = (
    "statistics", "running_mean", "running_var", "output", "dx", "sums", "grad_grad", "grad_input", "grad_weight",
)  # fmt: skip


def outputs(
    namespace: str, tensors: list[Tensor], vectors: list[Tensor], grad_sums: Tensor | None, training: bool, relu: bool
) -> list[Tensor]:
    operators = getattr(torch.ops, namespace)
    input, grad, v = tensors
    weight, bias, mean, variance = (vector.clone() for vector in vectors)
    statistics = operators.batch_norm_statistics(input, mean, variance, training, 0.1, 1e-5)
    output = operators.batch_norm(input, weight, bias, statistics, training, relu)
    arguments = (grad, input, weight, bias, statistics)
    dx, sums = operators.batch_norm_backward(*arguments, training, relu, True, True)
    second = operators.batch_norm_double_backward(v, grad_sums, *arguments, sums, training, relu, True)
    return [statistics, mean, variance, output, dx, sums, *second]


def compare(seed: int) -> list[dict[str, object]]:
    torch.manual_seed(seed)
    found = []
    for shape, layout, dtype, (training, relu) in itertools.product(
        SHAPES,
        (torch.contiguous_format, torch.channels_last),
        (torch.float32, torch.bfloat16, torch.float64),
        ((True, False), (True, True), (False, True)),
    ):
        if len(shape) != 4 and layout == torch.channels_last:
            continue
        computing = torch.float64 if dtype == torch.float64 else torch.float32
        tensors = [(torch.randn(shape) + shift).to(dtype).to(memory_format=layout) for shift in (3, 0, 0)]
        vectors = [torch.rand(shape[1], dtype=computing) + shift for shift in (-0.5, -0.5, 0.0, 0.5)]
        grad_sums = torch.randn(2, shape[1], dtype=computing) if training else None
        got = outputs("pal_fast_triton", tensors, vectors, grad_sums, training, relu)
        wanted = outputs("pal_fast", tensors, vectors, grad_sums, training, relu)
        for name, value, judge in zip(NAMES, got, wanted, strict=True):
            error = (value.double() - judge.double()).norm() / (judge.double().norm() or 1.0)
            same = (value.shape, value.dtype, value.stride()) == (judge.shape, judge.dtype, judge.stride())
            case = f"{name} {shape} {layout} {dtype} training={training} relu={relu}"
            found.append({"case": case, "dtype": str(dtype), "error": error.item(), "same_form": same})
    return found


if __name__ == "__main__":
    cpu = torch.device("cpu")
    for backend in ("cpu", "triton"):
        reason = dispatch.why_not(backend, cpu)
        if reason:
            sys.exit(f"{backend}: {reason}")
    namespace = dispatch.namespace("triton")
    ops.define_triton()
    ops.register(namespace)
    ops.register(dispatch.namespace("cpu"))
    print(json.dumps(compare(int(sys.argv[1]))))

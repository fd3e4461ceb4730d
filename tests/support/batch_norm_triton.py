"""Run as a script under TRITON_INTERPRET=1: compares Triton and compiled batch normalisation as JSON, or says why not.

A separate process, because triton decides at its first import whether it interprets.
"""

from __future__ import annotations

import itertools
import json
import sys

import torch

from pal_fast import dispatch
from pal_fast.nn import batch_norm_operators
from support.batch_norm_operators import NAMES, inputs, outputs

# Large shapes, whose channels are split among programs, in float32 only: the interpreter is slow.
SHAPES = {(6, 7): "all", (4, 5, 7, 7): "all", (3, 70, 33, 5): "float32", (2, 3, 64, 70): "float32"}


def compare(seed: int) -> tuple[list[dict[str, object]], dict[str, int]]:
    """Every output's error, and the most launches that each operator took."""
    torch.manual_seed(seed)
    found = []
    launches: dict[str, int] = {}
    for shape, layout, dtype, (training, relu) in itertools.product(
        SHAPES,
        (torch.contiguous_format, torch.channels_last),
        (torch.float32, torch.bfloat16, torch.float64),
        ((True, False), (True, True), (False, True)),
    ):
        if len(shape) != 4 and layout == torch.channels_last:
            continue
        if SHAPES[shape] != "all" and dtype != torch.float32:
            continue
        tensors, vectors = inputs(shape, dtype, layout)
        grad_sums = torch.randn(2, shape[1], dtype=vectors[0].dtype) if training else None
        got = outputs("pal_fast_triton", tensors, vectors, grad_sums, training, relu, launches)
        wanted = outputs("pal_fast", tensors, vectors, grad_sums, training, relu)
        for name, value, judge in zip(NAMES, got, wanted, strict=True):
            error = (value.double() - judge.double()).norm() / (judge.double().norm() or 1.0)
            same = (value.shape, value.dtype, value.stride()) == (judge.shape, judge.dtype, judge.stride())
            case = f"{name} {shape} {layout} {dtype} training={training} relu={relu}"
            found.append({"case": case, "dtype": str(dtype), "error": error.item(), "same_form": same})
    return found, launches


if __name__ == "__main__":
    from support.interpreter_probe import why_not

    if unable := why_not():
        print(json.dumps(unable))
        sys.exit()
    cpu = torch.device("cpu")
    for backend in ("cpu", "triton"):
        reason = dispatch.why_not(backend, cpu)
        if reason:
            sys.exit(f"{backend}: {reason}")
    namespace = dispatch.namespace("triton", cpu)
    batch_norm_operators.define_triton()
    batch_norm_operators.register(namespace)
    batch_norm_operators.register(dispatch.namespace("cpu", cpu))
    print(json.dumps(compare(int(sys.argv[1]))))

"""BatchNorm's CUDA operators on a GPU; tests/cuda/test_batch_norm.py runs their source on the CPU."""

from __future__ import annotations

import pytest
import torch
from support.batch_norm_operators import NAMES, inputs, outputs

BOUNDS = {"float64": 1e-12, "float32": 1e-4, "float16": 2e-3, "bfloat16": 1e-2}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(4, 5, 7, 7), (16, 256, 14, 14), (2, 3, 96, 97)], ids=str)
def test_the_gpu_agrees_with_the_cpu(shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype) -> None:
    tensors, vectors = inputs(shape, dtype, layout)
    for training in (True, False):
        for relu in (False, True):
            wanted = outputs("pal_fast", tensors, vectors, None, training, relu)
            on_gpu = [t.cuda() for t in tensors], [t.cuda() for t in vectors]
            got = outputs("pal_fast", *on_gpu, None, training, relu)
            for name, value, judge in zip(NAMES, got, wanted, strict=True):
                error = (value.double().cpu() - judge.double()).norm() / (judge.double().norm() or 1.0)
                assert error <= BOUNDS[str(dtype).removeprefix("torch.")], f"{name} training={training} relu={relu}"


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_each_operator_takes_at_most_two_launches(layout: torch.memory_format) -> None:
    launches: dict[str, int] = {}
    tensors = [torch.randn(64, 256, 14, 14, device="cuda").to(memory_format=layout) for _ in range(3)]
    vectors = [torch.rand(256, device="cuda") + 0.5 for _ in range(4)]
    outputs("pal_fast", tensors, vectors, None, True, True, launches)
    assert launches["batch_norm"] == 1
    assert launches["batch_norm_backward"] <= 2
    assert launches["batch_norm_double_backward"] <= 3

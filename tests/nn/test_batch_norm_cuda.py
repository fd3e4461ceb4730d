"""BatchNorm's CUDA: its source executed on the CPU by fibres, and, where there is a GPU, the operators themselves."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from support.emulated import SOURCES, cuda_headers
from support.kink import clear_of_the_kink

ROOT = Path(__file__).parents[2]
BOUNDS = {"float64": 1e-12, "float32": 1e-4, "float16": 2e-3, "bfloat16": 1e-2}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    headers, compiler = cuda_headers(), shutil.which("c++")
    if headers is None or compiler is None:
        pytest.skip("needs a C++ compiler and CUDA's headers (cuda_fp16.h)")
    target = tmp_path_factory.mktemp("cuda") / "batch_norm"
    source = Path(__file__).parent / "cuda_source" / "batch_norm.cpp"
    include = [f"-I{ROOT / 'csrc/cuda'}", f"-I{SOURCES}", f"-isystem{headers}"]
    subprocess.run([compiler, "-std=c++20", "-O1", *include, str(source), "-o", str(target)], check=True)
    return target


def test_the_kernels_source_gives_the_formulas_results(program: Path, seed: int) -> None:
    done = subprocess.run([str(program), str(seed)], capture_output=True, text=True, check=True)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    # 12 cases, with and without gradients of the sums, each with 6 outputs, and in training the running statistics.
    assert len(lines) == 12 * 2 * (6 + 2) + 12 * 2 * 6
    wrong = [line for line in lines if not float(line[2]) <= BOUNDS[line[0].split()[0]]]
    assert not wrong, wrong[:10]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(4, 5, 7, 7), (16, 256, 14, 14), (2, 3, 96, 97)], ids=str)
def test_the_gpu_agrees_with_the_cpu(shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype) -> None:
    from support.batch_norm_triton import NAMES, outputs

    computing = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = [(torch.randn(shape) + shift).to(dtype).to(memory_format=layout) for shift in (3, 0, 0)]
    vectors = [torch.rand(shape[1], dtype=computing) + shift for shift in (-0.5, -0.5, 0.0, 0.5)]
    tensors[0] = clear_of_the_kink(tensors[0], vectors)
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
def test_the_gpu_is_launched_twice_at_most(layout: torch.memory_format) -> None:
    from support.batch_norm_triton import outputs

    launches: dict[str, int] = {}
    tensors = [torch.randn(64, 256, 14, 14, device="cuda").to(memory_format=layout) for _ in range(3)]
    vectors = [torch.rand(256, device="cuda") + 0.5 for _ in range(4)]
    outputs("pal_fast", tensors, vectors, None, True, True, launches)
    assert launches["batch_norm"] == 1
    assert launches["batch_norm_backward"] <= 2
    assert launches["batch_norm_double_backward"] <= 3

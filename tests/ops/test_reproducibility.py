"""Results are bit-identical in every run and for any number of threads, and agree for every instruction set."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from support.compare import TOLERANCE, relative_error
from support.gpu import VIRTUAL
from support.loss_problems import Problem, make, same_bits
from support.threads import one_thread
from torch import Tensor

import pal_fast

CASES = [
    {"shape": (3, 70, 14, 14)},
    {"shape": (3, 300, 14, 14), "channels": "each", "layout": "channels_last"},
    {"shape": (2, 300, 14, 14), "channels": "all", "reduction": "none"},
    {"shape": (1, 64, 40, 40), "channels": "half", "layout": "channels_last", "dtype": torch.bfloat16},
    {"shape": (70, 130, 7, 7), "channels": "all", "layout": "channels_last"},
    {"shape": (40, 130, 7, 7), "dtype": torch.float16, "landmarks": 68, "combine": "max"},
]


def heatmap_bits(backend: str, problem: Problem) -> list[Tensor]:
    points = problem.tensors["landmarks"].detach().requires_grad_()
    heatmap = pal_fast.landmark_heatmap(points, (40, 50), image_size=56, normalize="peak", backend=backend)
    return [heatmap, *torch.autograd.grad(heatmap.square().sum(), points)]


@one_thread()
@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_are_bit_identical_for_any_number_of_threads(case, seed):
    problem = make(case, seed)
    first, heatmap = problem.solve("cpu"), heatmap_bits("cpu", problem)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        assert same_bits(first, problem.solve("cpu")), f"{threads} threads"
        assert all(torch.equal(a, b) for a, b in zip(heatmap, heatmap_bits("cpu", problem), strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_repeated_runs_are_bit_identical(backend, case, seed):
    """A race between the pieces of a sample would occasionally change the bits."""
    problem = make(case, seed, backend)
    first = problem.solve(backend)
    for _ in range(2 if VIRTUAL else 100 if backend == "cuda" else 25):
        assert same_bits(first, problem.solve(backend))


SOLVE = """
import sys, torch
from support.loss_problems import make
torch.save([make(case, 5).solve("cpu") for case in torch.load(sys.argv[1], weights_only=True)], sys.argv[2])
"""


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_every_instruction_set_gives_the_same_values(tmp_path, capability):
    """ATEN_CPU_CAPABILITY limits our kernels as it does PyTorch's, so one machine can test each instruction set."""
    cases = [*CASES, {"shape": (2, 5, 13, 17), "dtype": torch.float64, "channels": "each", "landmarks": None}]
    torch.save(cases, tmp_path / "cases.pt")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "ATEN_CPU_CAPABILITY": capability}
    command = [sys.executable, "-c", SOLVE, str(tmp_path / "cases.pt"), str(tmp_path / "solved.pt")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for case, theirs in zip(cases, torch.load(tmp_path / "solved.pt", weights_only=True), strict=True):
        ours = make(case, 5).solve("cpu")
        bound = TOLERANCE[case.get("dtype", torch.float32)]
        for a, b in zip([ours[0], *ours[1]], [theirs[0], *theirs[1]], strict=True):
            assert relative_error(a, b) <= bound, case

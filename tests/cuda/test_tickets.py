"""The memory of kernels' tickets, the limit of sizes, and the state after CUDA runtime failures: csrc/cuda/device.cpp
with a runtime that fails on demand (runtime/tickets.cpp)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from support.emulated import cuda_headers
from torch.utils import cpp_extension

ROOT = Path(__file__).parents[2]
NO_MEMORY, ILLEGAL_ADDRESS = 2, 700  # cudaErrorMemoryAllocation, cudaErrorIllegalAddress


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    headers, compiler = cuda_headers(), shutil.which("c++")
    if headers is None or compiler is None or not (headers / "cuda_runtime_api.h").is_file():
        pytest.skip("needs a C++ compiler and CUDA's headers (cuda_runtime_api.h)")
    target = tmp_path_factory.mktemp("runtime") / "tickets"
    sources = [Path(__file__).parent / "runtime" / "tickets.cpp", ROOT / "csrc/cuda/device.cpp"]
    flags = ["-std=c++20", "-O0", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DUSE_CUDA=1"]
    flags += [f"-I{ROOT / 'csrc'}", *(f"-I{path}" for path in cpp_extension.include_paths())]
    libraries = Path(torch.__file__).parent / "lib"
    link = [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-ltorch_cpu", "-lc10", "-ldl", "-lpthread"]
    subprocess.run([compiler, *flags, f"-isystem{headers}", *map(str, sources), "-o", str(target), *link], check=True)
    return target


class Tickets(NamedTuple):
    place: str  # kept: the memory is the extension's; owned: a PyTorch tensor's
    address: str
    values: str  # zeros or dirty
    mallocs: int
    memsets: int
    left: int  # the error that the next launch would find


def output_lines(program: Path, *script: str) -> list[str]:
    done = subprocess.run([str(program), *script], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def run(program: Path, *script: str) -> list[Tickets]:
    lines = [line.replace("| ", "").split() for line in output_lines(program, *script)]
    return [Tickets(*words[:3], *map(int, words[3:])) for words in lines]


def test_a_stream_keeps_its_tickets_and_zeroes_them_once(program: Path) -> None:
    script = ["tickets=1,9", "tickets=1,4096", "tickets=2,9", "tickets=1,4097"]
    first, again, other, larger = run(program, *script)
    assert first == ("kept", first.address, "zeros", 1, 1, 0)
    assert again == first
    assert other == ("kept", other.address, "zeros", 2, 2, 0)
    assert larger == ("kept", larger.address, "zeros", 3, 3, 0)
    assert len({first.address, other.address, larger.address}) == 3


def test_a_captured_call_owns_its_tickets(program: Path) -> None:
    before, captured, after = run(program, "tickets=1,9", "capture=1", "tickets=1,9", "capture=0", "tickets=1,9")
    assert captured == ("owned", captured.address, "zeros", 1, 2, 0)
    assert after == ("kept", before.address, "zeros", 1, 2, 0)


def test_if_allocating_kept_tickets_fails_each_call_owns_its_tickets_and_no_error_is_left(program: Path) -> None:
    script = [f"malloc={NO_MEMORY}", "tickets=1,9", "tickets=1,9", "malloc=0", "tickets=1,9", "tickets=1,9"]
    first, second, kept, again = run(program, *script)
    assert first == ("owned", first.address, "zeros", 1, 1, 0)
    assert second == ("owned", second.address, "zeros", 2, 2, 0)
    assert kept == ("kept", kept.address, "zeros", 3, 3, 0)
    assert again == kept


def test_if_growing_the_tickets_fails_the_kept_ones_stay_in_use(program: Path) -> None:
    kept, larger, again = run(program, "tickets=1,9", f"malloc={NO_MEMORY}", "tickets=1,5000", "tickets=1,9")
    assert larger == ("owned", larger.address, "zeros", 2, 2, 0)
    assert again == ("kept", kept.address, "zeros", 2, 2, 0)


@pytest.mark.parametrize(
    ("failure", "call", "message"),
    [
        ("malloc", "tickets=1,9", "allocating tickets: as told"),
        ("memset", "tickets=1,9", "zeroing tickets: as told"),
        ("attribute", "processors", "device 0: as told"),
    ],
)
def test_a_runtime_failure_is_reported_once_and_not_left_for_the_next_launch(
    failure: str, call: str, message: str, program: Path
) -> None:
    failed, after = output_lines(program, f"{failure}={ILLEGAL_ADDRESS}", call, f"{failure}=0", call)
    assert message in failed
    assert failed.endswith("| 0")
    assert "as told" not in after


def test_a_count_from_which_a_loop_in_32_bits_would_overflow_is_refused(program: Path) -> None:
    taken, refused = output_lines(program, f"count={2**30 - 1}", f"count={2**30}")
    assert taken == " | 0"
    assert f"{2**30} cells is too large for the CUDA kernels, which count up to {2**30 - 1}" in refused

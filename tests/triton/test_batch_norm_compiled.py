"""Triton's batch normalisation as machine code for sm_90: the loads that a thread issues before it has to wait."""

from __future__ import annotations

import math
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from support.machine_code import bits
from support.triton_compile import PROCESSORS, Compiled, compiling, ptxas, why_no_ptxas
from torch import Tensor

pytest.importorskip("triton", reason="the package triton is not installed")

DISASSEMBLER = ptxas().parent / "nvdisasm"

pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="triton interprets in this process"),
    pytest.mark.skipif(bool(why_no_ptxas()), reason=why_no_ptxas()),
    pytest.mark.skipif(not DISASSEMBLER.exists(), reason="this triton brings no disassembler"),
]

LAYOUTS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.bfloat16, torch.float32]
REGISTERS = 65536  # of a multiprocessor


def compile_all(layer: Tensor) -> list[tuple[int, Compiled]]:
    """Every kernel that training runs on such a layer, with the number of tensors of its shape that each reads."""
    from pal_fast.kernels import batch_norm as operators
    from triton.runtime.jit import JITFunction

    def by_name(self: Any, *positional: Any, **named: Any) -> None:
        compile_it(self, **dict(zip((parameter.name for parameter in self.params), positional, strict=False)), **named)

    channels = layer.shape[1]
    vector = torch.empty(channels)
    state = vector, vector, torch.empty(2, channels)
    with compiling() as found:
        compile_it, JITFunction.run = JITFunction.run, by_name  # compiling() restores the original
        operators.batch_norm_statistics(layer, vector, vector, True, 0.1, 1e-5)
        operators.batch_norm(layer, *state, True, True)
        operators.batch_norm_backward(layer, layer, *state, True, True, True, True)
        operators.batch_norm_double_backward(layer, None, layer, layer, *state, state[2], True, True, True)
    names = ["statistics", "final_statistics", "forward", "sums", "derivative", "sums", "derivative"]
    assert [kernel.name for kernel in found] == [f"{name}_kernel" for name in names]
    return list(zip((1, 0, 1, 2, 2, 3, 3), found, strict=True))


def machine_code(ptx: str, folder: Path) -> list[str]:
    (folder / "kernel.ptx").write_text(ptx)
    cubin = folder / "kernel.cubin"
    subprocess.run([ptxas(), "--gpu-name=sm_90a", folder / "kernel.ptx", "-o", cubin], check=True)
    return subprocess.run([DISASSEMBLER, "-c", cubin], check=True, capture_output=True, text=True).stdout.splitlines()


def loop_over_rows(lines: list[str]) -> list[str]:
    """The loop that stores to global memory, or else the one with most loads from it."""
    labels: dict[str, int] = {}
    best: tuple[int, list[str]] = (0, [])
    for index, line in enumerate(lines):
        if label := re.match(r"(\.L_\w+):", line):
            labels[label[1]] = index
        if (branch := re.search(r"BRA.*`\((\.L_\w+)\)", line)) and branch[1] in labels:
            loop = lines[labels[branch[1]] : index]
            score = sum("LDG" in each for each in loop) + 1000 * any("STG" in each for each in loop)
            best = max(best, (score, loop), key=lambda found: found[0])
    return best[1]


def bytes_in_flight(loop: list[str]) -> int:
    """The most bytes that a thread has in flight in a steady-state iteration, before it uses any of them."""
    asked: dict[int, int] = {}  # keyed by the first register of each load not yet waited for
    most = 0
    for line in 2 * loop:
        if not (found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?(\S+) ?(.*?);", line)):
            continue
        operation, operands = found[1], found[2].split(",")
        sources = operands if operation.startswith("ST") else operands[1:]
        words = bits(operation) // 32 if operation.startswith("ST") else 1
        used = {int(r) + i for source in sources for r in re.findall(r"\bR(\d+)", source) for i in range(words)}
        asked = {r: size for r, size in asked.items() if not used & set(range(r, r + size // 4))}
        if operation.startswith("LDG"):
            asked[int(re.findall(r"\bR(\d+)", operands[0])[0])] = bits(operation) // 8
            most = max(most, sum(asked.values()))
    return most


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
# 49, 196 and 784 elements of a plane: bfloat16 has whole vectors in none, half a vector and a vector.
@pytest.mark.parametrize(("channels", "side"), [(2048, 7), (1024, 14), (64, 28)])
def test_layers_are_read_in_wide_vectors_by_programs_that_share_a_multiprocessor(
    channels: int, side: int, dtype: torch.dtype, layout: torch.memory_format, for_an_h100: None, tmp_path: Path
) -> None:
    from pal_fast.kernels.batch_norm_plan import parts_of

    layer = torch.empty((64, channels, side, side), dtype=dtype).to(memory_format=layout)
    words = r"v2\.b32|v4\.b32" if (dtype, layout, side) == (torch.bfloat16, torch.contiguous_format, 14) else r"v4\.b32"
    for tensors, kernel in compile_all(layer):
        assert not kernel.spilled_bytes, kernel
        if not tensors:
            continue
        assert not re.findall(r"(ld|st)\.global\.b16", kernel.ptx), f"{kernel.name} takes a layer element by element"
        assert re.search(rf"ld\.global\.({words})", kernel.ptx)
        loop = loop_over_rows(machine_code(kernel.ptx, tmp_path))
        assert bytes_in_flight(loop) >= 32 * max(2, tensors), f"{kernel.name} waits before it has asked for a tile"
        writes = re.search(rf"st\.global\.({words})", kernel.ptx) is not None
        assert writes == (kernel.name in ("forward_kernel", "derivative_kernel"))
        assert not re.findall(r"(mul\.hi|div|rem)\.[su]64", kernel.ptx), f"{kernel.name} divides in 64 bits"
        parts = parts_of(layer, tensors=tensors, tiles=2 if kernel.name == "forward_kernel" else 1)
        resident = PROCESSORS * (REGISTERS // (math.ceil(kernel.registers / 8) * 8 * 32 * parts.warps))
        if parts.splits > 1:  # otherwise there may be any number of channels
            assert math.prod(parts.grid) <= resident, f"{kernel.name}: {parts.grid} do not fit beside one another"


@pytest.mark.parametrize("shape", [(1, 8, 7, 7), (2, 1, 5, 5), (5, 7, 7, 7), (3, 6, 1, 2)], ids=str)
def test_kernels_compile_for_sizes_of_one_and_odd_sizes(shape: tuple[int, ...]) -> None:
    for layout in LAYOUTS:
        compile_all(torch.empty(shape).to(memory_format=layout))

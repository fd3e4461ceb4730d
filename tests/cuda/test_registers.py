"""The compiler's report on every CUDA kernel, recorded in benchmarks/results/registers.csv, and the code it built."""

from __future__ import annotations

import csv
import re
import subprocess
from pathlib import Path

import pytest
from support.toolkit import cuobjdump

from benchmarks.registers import TABLE, read_report
from pal_fast import _extension

ROOT = Path(__file__).parents[2]
ARCHITECTURES = {"sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"}
ONLY_SM90A = {"warpgroup_heatmap_kernel"}


@pytest.fixture(scope="module")
def table() -> list[dict[str, str]]:
    with TABLE.open() as file:
        return list(csv.DictReader(file))


def test_no_kernel_spills(table: list[dict[str, str]]) -> None:
    assert not [row for row in table if int(row["spill_stores"]) or int(row["spill_loads"])]


def test_the_table_holds_every_kernel_on_every_architecture(table: list[dict[str, str]]) -> None:
    sources = [*(ROOT / "csrc/cuda").rglob("*.cuh"), *(ROOT / "csrc/cuda").rglob("*.cu")]
    nested = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
    declared = re.compile(rf"__global__\s+void\s+(?:__launch_bounds__{nested}\s*)?(\w+)\(")
    kernels = {name for source in sources for name in declared.findall(source.read_text())}
    assert len(kernels) >= 10
    architectures: dict[str, set[str]] = {}
    for row in table:
        architectures.setdefault(row["kernel"], set()).add(row["architecture"])
    assert {name.split("<")[0] for name in architectures} == kernels
    only = {name: found for name, found in architectures.items() if found != ARCHITECTURES}
    assert {name.split("<")[0] for name in only} == ONLY_SM90A
    assert all(found == {"sm_90a"} for found in only.values())


def test_a_spill_in_the_compilers_report_is_recognised() -> None:
    report = """
ptxas info    : Compiling entry function '_Z1kv' for 'sm_90'
ptxas info    : Function properties for _Z1kv
    24 bytes stack frame, 8 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 80 registers, used 1 barriers, 24 bytes cumulative stack size, 512 bytes smem
"""
    assert list(read_report(report)) == [("_Z1kv", "sm_90", 80, 8, 16, 512)]


def test_the_extension_holds_machine_code_for_every_architecture_and_ptx_for_the_newest() -> None:
    reason = _extension.load()
    assert not reason, reason
    built_for = _extension.build_info().get("cuda", "").split()
    disassembler = cuobjdump()
    if not built_for or disassembler is None:
        pytest.skip("needs an extension built with CUDA, and cuobjdump (of CUDA's toolkit, or Triton's)")
    path = _extension.find()

    def listed(what: str) -> set[str]:
        text = subprocess.run([disassembler, what, str(path)], capture_output=True, text=True, check=True).stdout
        return set(re.findall(r"\.(sm_\w+|compute_\w+)\.(?:cubin|ptx)", text))

    assert listed("--list-elf") == {name for name in built_for if name.startswith("sm_")}
    newest = built_for[-1].removeprefix("compute_")
    assert {name.split("_")[1] for name in listed("--list-ptx")} == {newest, "90a"}  # the latter is for tests

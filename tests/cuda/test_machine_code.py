"""The machine code of the built kernels: no spills on any architecture, and vector accesses stay vectors on sm_90. The
compiler may split what the source writes as one store."""

from __future__ import annotations

import csv
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from support import machine_code
from support.toolkit import cuobjdump

from benchmarks.registers import TABLE
from pal_fast import _extension

BITS = {"__half": 16, "__nv_bfloat16": 16, "float": 32, "double": 64}
#: For each batch normalisation kernel: tensors read, passes over its share of them, and tensors written.
BATCH_NORM = {
    "statistics_kernel": (1, 1, 0),
    "forward_kernel": (1, 1, 1),
    "sums_kernel<0": (2, 1, 0),
    "sums_kernel<1": (3, 1, 0),
    "derivative_kernel<0": (2, 2, 1),
    "derivative_kernel<1": (3, 2, 2),
}


@pytest.fixture(scope="module")
def disassembler() -> str:
    reason = _extension.load()
    assert not reason, reason
    if "sm_90" not in architectures():
        pytest.skip("needs an extension built with CUDA for sm_90")
    found = cuobjdump()
    if found is None or shutil.which("c++filt") is None:
        pytest.skip("needs cuobjdump (of CUDA's toolkit, or Triton's) and c++filt (binutils)")
    return found


@pytest.fixture(scope="module")
def kernels(disassembler: str) -> dict[str, Counter[str]]:
    return machine_code.accesses(extension(), "sm_90", disassembler)


def extension() -> Path:
    found = _extension.find()
    assert found is not None
    return found


def architectures() -> set[str]:
    return {name for name in _extension.build_info().get("cuda", "").split() if name.startswith("sm_")}


def of(kernels: dict[str, Counter[str]], name: str) -> dict[str, Counter[str]]:
    return {kernel: counts for kernel, counts in kernels.items() if kernel.startswith(name)}


def test_every_kernel_is_disassembled(kernels: dict[str, Counter[str]]) -> None:
    with TABLE.open() as file:
        listed = {row["kernel"] for row in csv.DictReader(file)}
    assert {kernel.split("<")[0] for kernel in kernels} == {kernel.split("<")[0] for kernel in listed}
    assert all(counts for kernel, counts in kernels.items() if kernel != "probe_kernel")


def test_no_kernel_uses_local_memory(kernels: dict[str, Counter[str]]) -> None:
    assert not {kernel for kernel, counts in kernels.items() if any(a.startswith(("LDL", "STL")) for a in counts)}


def test_no_kernel_has_a_stack_on_any_architecture(disassembler: str, kernels: dict[str, Counter[str]]) -> None:
    stacks = machine_code.stacks(extension(), disassembler)
    of_sm90a = of(kernels, "warpgroup_heatmap_kernel")
    assert len(stacks) == (len(kernels) - len(of_sm90a)) * len(architectures() - {"sm_90a"}) + len(of_sm90a)
    assert {architecture for _, architecture in stacks} == architectures()
    assert not {kernel: size for kernel, size in stacks.items() if size}


def test_the_loss_stores_its_gradients_16_bytes_at_a_time(kernels: dict[str, Counter[str]]) -> None:
    backward = of(kernels, "loss_backward_kernel")
    assert len(backward) == len(BITS) * 2 * 3  # layouts, groupings
    for kernel, counts in backward.items():
        # Two vectors of each gradient in flight, each stored as a vector; the element-by-element path is separate.
        assert machine_code.wide(counts, "STG", 128) >= 4, f"{kernel}: {dict(counts)}"
        assert machine_code.wide(counts, "LDG", 128) >= 4, f"{kernel}: {dict(counts)}"


def test_large_heatmaps_are_stored_16_bytes_at_a_time(kernels: dict[str, Counter[str]]) -> None:
    names = ("tiled_heatmap_kernel", "matrix_heatmap_kernel", "warpgroup_heatmap_kernel")
    drawing = {kernel: counts for name in names for kernel, counts in of(kernels, name).items()}
    assert len(drawing) == 6
    for kernel, counts in drawing.items():
        assert machine_code.wide(counts, "STG", 128) >= 4, f"{kernel}: {dict(counts)}"


def test_warpgroups_do_not_wait_between_products(disassembler: str) -> None:
    products = machine_code.products(extension(), disassembler)
    assert len(products) == 2
    for kernel, order in products.items():
        steps = int(re.search(r"<(\d+)>", kernel)[1])  # type: ignore[index]
        # Per step, one product of the high parts and two of a high and a low part; a wait at the end on either path.
        assert re.fullmatch("P" * (3 * steps) + "W+", order), f"{kernel}: {order}"


@pytest.mark.parametrize("name", BATCH_NORM)
def test_batch_normalisation_keeps_several_vector_loads_in_flight(name: str, kernels: dict[str, Counter[str]]) -> None:
    tensors, times, written = BATCH_NORM[name]
    checked = []
    for kernel, counts in of(kernels, name).items():
        found = re.search(r"(\w+), (true|false), \d", kernel)
        assert found, kernel
        if found[2] == "true":
            element = BITS[found[1]]
            vector = 64 if element == 16 else 128
            checked.append(kernel)
            # At least 48 bytes per thread.
            places = max(2, -(-48 * 8 // (tensors * vector)))
            assert machine_code.wide(counts, "LDG", vector) >= places * tensors * times, f"{kernel}: {dict(counts)}"
            assert machine_code.wide(counts, "STG", vector) >= places * written, f"{kernel}: {dict(counts)}"
            if element == 16:  # only the tensors have 16-bit elements
                assert not machine_code.wide(counts, "LDG", 16), f"{kernel}: {dict(counts)}"
                assert not machine_code.wide(counts, "STG", 16), f"{kernel}: {dict(counts)}"
            if name == "forward_kernel":  # it stores nothing else
                assert machine_code.wide(counts, "STG", vector) == sum(
                    count for access, count in counts.items() if access.startswith("STG")
                ), f"{kernel}: {dict(counts)}"
    assert len(checked) == len(BITS) * 3  # forms


def test_accesses_are_parsed_by_kernel_and_width() -> None:
    listing = """
		Function : _Z1av
        /*0040*/                   LDG.E.EF.128 R4, desc[UR16][R2.64] ;  /* 0x00009400ff247b82 */
        /*0050*/              @!P0 STG.E.U16 desc[UR16][R2.64+0x2], R9 ;
        /*0060*/                   STG.E.128.STRONG.SM desc[UR16][R2.64+0x2], R4 ;
		Function : _Z1bv
        /*0040*/                   STL.64 [R1+0x8], R4 ;
        /*0050*/                   LDGSTS.E.128 [R1], desc[UR16][R2.64] ;
        /*0060*/                   LDC R1, c[0x0][0x28] ;
"""
    first, second = machine_code.read_accesses(listing.splitlines()).values()
    assert first == {"LDG.E.EF.128": 1, "STG.E.U16": 1, "STG.E.128.STRONG.SM": 1}
    assert second == {"STL.64": 1}
    assert [machine_code.bits(access) for access in (*first, "LDG.E", "STG.E.64")] == [128, 16, 128, 32, 64]
    assert machine_code.wide(first, "STG", 128) == 1


def test_waits_between_products_are_recognised() -> None:
    listing = """
		Function : _Z1av
        /*3c10*/                   HGMMA.64x64x16.F32 R24, R76, gdesc[UR8], RZ, !UPT, gsb0 ;
        /*3c20*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*3cc0*/                   HGMMA.64x64x16.F32 R24, R56, gdesc[UR8], R24, gsb0 ;
        /*4580*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
"""
    assert machine_code.read_products(listing.splitlines()) == {"_Z1av": "PWPW"}


def test_stack_sizes_are_parsed_by_architecture() -> None:
    report = """
arch = sm_90
Resource usage:
 Common:
  GLOBAL:0
 Function _Z1av:
  REG:79 STACK:8 SHARED:1024 LOCAL:0 CONSTANT[0]:1120 TEXTURE:0 SURFACE:0 SAMPLER:0
arch = sm_120
 Function _Z1av:
  REG:80 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:1120 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
    assert machine_code.read_stacks(report.splitlines()) == {("_Z1av", "sm_90"): 8, ("_Z1av", "sm_120"): 0}

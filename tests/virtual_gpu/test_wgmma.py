"""wgmma on the virtual GPU equals the matrix product in numpy, and the virtual GPU reports its misuse."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from virtual_gpu import wgmma_kernels
from virtual_gpu.kernels import numbers
from virtual_gpu.wgmma_kernels import ACCUMULATORS, ROWS, Layout, matrix_of, operands

Launch = Callable[..., str]


def factors(kind: str, depth: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A [64, depth] and B [64, depth], by columns, in the storage type of `kind`."""
    random = np.random.default_rng(seed)
    pair = random.standard_normal((2, ROWS, depth), np.float32)
    if kind == "f16":
        pair = pair.astype(np.float16)
    elif kind == "bf16":
        pair = (pair.view(np.uint32) >> 16).astype(np.uint16)
    return pair[0], pair[1]


def values(kind: str, matrix: np.ndarray) -> np.ndarray:
    """The values that a tensor core reads from the elements."""
    if kind == "bf16":
        return (matrix.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if kind == "tf32":  # the lower 13 bits are not read
        return (matrix.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    return matrix.astype(np.float64)


@pytest.mark.parametrize("swizzle", [16, 32, 64, 128])
@pytest.mark.parametrize(
    ("kind", "along_k"),
    [("tf32", True), ("f16", True), ("bf16", True), ("f16", False), ("bf16", False)],
    ids=["tf32", "f16", "bf16", "f16 transposed", "bf16 transposed"],
)
def test_wgmma_equals_the_matrix_product_in_every_layout(
    launch: Launch, seed: int, kind: str, along_k: bool, swizzle: int
) -> None:
    size = 4 if kind == "tf32" else 2
    depth = 128 // size
    a, b = factors(kind, depth, seed)
    image, descriptors = operands(Layout(swizzle, along_k), a, b)
    transposed = "" if kind == "tf32" else f", {int(not along_k)}, {int(not along_k)}"
    ptx = wgmma_kernels.product(kind, depth * size // 32, image.nbytes, transposed=transposed)
    out = numbers(128 * ACCUMULATORS)
    assert launch(ptx, "product", 1, 128, image, descriptors, out) == ""
    np.testing.assert_allclose(matrix_of(out), values(kind, a) @ values(kind, b).T, rtol=1e-5, atol=1e-5)


def report_of(launch: Launch, seed: int, *, threads: int = 128, change: int = 0, **places: str) -> str:
    """The report on a TF32 product with faults at some `places` of the kernel or, by `change`, in a descriptor."""
    a, b = factors("tf32", 32, seed)
    image, descriptors = operands(Layout(128), a, b)
    descriptors[1] ^= np.uint64(change)
    ptx = wgmma_kernels.product("tf32", 4, image.nbytes, **places)
    return launch(ptx, "product", 1, threads, image, descriptors, numbers(128 * ACCUMULATORS))


_PROXY_FENCE = "fence.proxy.async.shared::cta;"
_SMALL = "wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32"
_OTHER_SHAPE = f"{_SMALL} {{%d0, %d1, %d2, %d3}}, %rd6, %rd7, 1, 1, 1;"
_OTHER_ROLE = f"{_SMALL} {{%r4, %r5, %r6, %r7}}, {{%d0, %d1, %d2, %d3}}, %rd7, 0, 1, 1;"


@pytest.mark.parametrize(
    "places",
    [
        {"before_barrier": "", "after_barrier": _PROXY_FENCE},
        {"before_barrier": f"bar.sync 0; @%p2 {_PROXY_FENCE}"},
    ],
    ids=["of every thread, after the barrier", "of one thread, between two barriers"],
)
def test_a_proxy_fence_after_the_barrier_is_accepted_if_ordered_before_the_wgmma(
    launch: Launch, seed: int, places: dict[str, str]
) -> None:
    assert report_of(launch, seed, **places) == ""


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"before_barrier": ""}, "with no fence.proxy.async between"),
        ({"before_barrier": "fence.acq_rel.gpu;"}, "with no fence.proxy.async between"),
        ({"before_barrier": f"@!%p2 {_PROXY_FENCE}"}, "with no fence.proxy.async between"),
        ({"before_barrier": "", "after_barrier": f"@%p2 {_PROXY_FENCE}"}, "with no fence.proxy.async between"),
        ({"barrier": ""}, "a wgmma reads"),
        ({"fence": ""}, "with no wgmma.fence between"),
        ({"fence": "wgmma.fence.sync.aligned; mov.b32 %d3, 0;"}, "with no wgmma.fence between"),
        ({"commit": _OTHER_SHAPE}, "with no wgmma.fence between"),
        ({"commit": _OTHER_ROLE}, "what another one in flight multiplies, or the other way round"),
        ({"wait": ""}, "a register of a wgmma that was not waited for"),
        ({"commit": ""}, "a register of a wgmma that was not waited for"),
        ({"wait": "wgmma.wait_group.sync.aligned 1;"}, "a register of a wgmma that was not waited for"),
        ({"commit": "st.shared.u32 [%r3], %r1;"}, "of what a wgmma of warpgroup 0 reads that was not waited for"),
        ({"fence": "@%p2 bra $done; wgmma.fence.sync.aligned;", "wait": "$done:"}, "of its warpgroup that has left"),
        ({"after_barrier": "@%p2 wgmma.commit_group.sync.aligned;"}, "meet at different instructions"),
        ({"after_barrier": "@%p2 add.s64 %rd2, %rd2, 16;"}, "do not agree on a matrix descriptor"),
    ],
)  # fmt: skip
def test_each_fault_is_reported(launch: Launch, seed: int, places: dict[str, str], message: str) -> None:
    assert message in report_of(launch, seed, **places)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (1 << 12, "an access out of bounds of shared memory"),
        (1 << 4, "does not begin where its swizzle's pattern does"),
        (7, "does not begin where its swizzle's pattern does"),
        (1 << 49, "does not begin where its swizzle's pattern does"),
        (1 << 14, "bits that mean nothing"),
    ],
    ids=["too far", "not a pattern's first line", "past the line", "another base offset", "reserved"],
)
def test_an_invalid_matrix_descriptor_is_refused(launch: Launch, seed: int, change: int, message: str) -> None:
    assert message in report_of(launch, seed, change=change)


def test_a_warpgroup_of_fewer_than_128_threads_is_refused(launch: Launch, seed: int) -> None:
    assert "of its warpgroup that has left or is not there" in report_of(launch, seed, threads=96)


def test_unsupported_products_are_refused_by_name(launch: Launch) -> None:
    with pytest.raises(RuntimeError, match=r"does not know: wgmma\.mma_async\S*e4m3"):
        launch(wgmma_kernels.product("e4m3", 1, 8192), "product", 1, 128)

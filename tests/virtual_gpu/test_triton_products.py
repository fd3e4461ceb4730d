"""Triton's code for tl.dot on sm_90, for every memory order of the matrices, equals the matrix product in numpy."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
from virtual_gpu.kernels import numbers

triton = pytest.importorskip("triton", reason="the package triton is not installed")

import triton.language as tl  # noqa: E402
from support.triton_compile import why_no_ptxas  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

Launch = Callable[..., str]

pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="triton interprets in this process"),
    pytest.mark.skipif(bool(why_no_ptxas()), reason=why_no_ptxas()),
]


@triton.jit
def product_kernel(
    a_ptr, b_ptr, c_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    A_INNER: tl.constexpr, B_INNER: tl.constexpr, A_COMPUTED: tl.constexpr,
) -> None:  # fmt: skip
    row, column, k = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, DEPTH)
    a = tl.load(a_ptr + (row[:, None] * DEPTH + k[None, :] if A_INNER else k[None, :] * ROWS + row[:, None]))
    b = tl.load(b_ptr + (column[None, :] * DEPTH + k[:, None] if B_INNER else k[:, None] * COLUMNS + column[None, :]))
    if A_COMPUTED:
        a = tl.abs(a)  # so that it is in registers when it is multiplied
    c = tl.dot(a, b)
    tl.store(c_ptr + row[:, None] * COLUMNS + column[None, :], c)


@pytest.mark.parametrize("depth", [16, 32, 64])
@pytest.mark.parametrize(("warps", "columns"), [(4, 64), (8, 16)], ids=["one warpgroup", "two warpgroups"])
@pytest.mark.parametrize(
    "case",  # type; whether k is innermost in A, in B; whether A is computed
    [
        *(("fp16", a, b, False) for a in (True, False) for b in (True, False)),
        *(("fp32", inner, inner, False) for inner in (True, False)),
        *((kind, True, True, True) for kind in ("fp16", "fp32")),
    ],
)
def test_tl_dot_equals_the_matrix_product(
    launch: Launch, seed: int, case: tuple[str, bool, bool, bool], warps: int, columns: int, depth: int
) -> None:
    kind, a_inner, b_inner, a_computed = case
    rows = 16 * warps
    signature = {"a_ptr": f"*{kind}", "b_ptr": f"*{kind}", "c_ptr": "*fp32"}
    constants = {"ROWS": rows, "COLUMNS": columns, "DEPTH": depth, "A_INNER": a_inner, "B_INNER": b_inner}
    constants["A_COMPUTED"] = a_computed
    source = ASTSource(
        product_kernel,
        signature | dict.fromkeys(constants, "constexpr"),
        constexprs={(3 + i,): value for i, value in enumerate(constants.values())},
        attrs={(i,): [["tt.divisibility", 16]] for i in range(3)},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    first = compiled.asm["ptx"].split("wgmma.mma_async")[1].split(";")[0]
    assert (first.count("{") == 2) == a_computed, "A is read from registers or from memory"

    random = np.random.default_rng(seed)
    dtype = np.float16 if kind == "fp16" else np.float32
    a, b = (random.integers(-512, 512, (lines, depth)).astype(dtype) / 64 for lines in (rows, columns))
    given, c = [numbers(a.nbytes // 4), numbers(b.nbytes // 4)], numbers(rows * columns)
    for memory, matrix, inner in zip(given, (a, b), (a_inner, b_inner), strict=True):
        memory.view(dtype)[:] = (matrix if inner else matrix.T).ravel()
    shared = compiled.metadata.shared
    assert launch(compiled.asm["ptx"], "product_kernel", 1, 32 * warps, *given, c, shared=shared) == ""
    expected = (np.abs(a) if a_computed else a).astype(np.float64) @ b.astype(np.float64).T
    np.testing.assert_array_equal(c.view(np.float32).reshape(rows, columns), expected.astype(np.float32))

"""Triton batch normalisation: its results in the interpreter, and that it compiles (no GPU needed)."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pal_fast.nn import batch_norm_operators

triton = pytest.importorskip("triton", reason="the package triton is not installed")

ROOT = Path(__file__).parents[2]
#: The most launches that each operator may take; issue 6 allows the backward 2 and the second derivative 3.
LAUNCHES = {
    "batch_norm_statistics": 2, "batch_norm": 1, "batch_norm_backward": 2, "batch_norm_double_backward": 2,
}  # fmt: skip
BOUNDS = {"torch.float64": 1e-11, "torch.float32": 1e-4, "torch.bfloat16": 1e-2}


@pytest.mark.skipif(
    not batch_norm_operators.namespace_on(torch.device("cpu")), reason="the extension is not built: there is no judge"
)
def test_agrees_with_the_compiled_operators_in_the_interpreter(seed: int) -> None:
    command = [sys.executable, "-W", "ignore", str(ROOT / "tests/support/batch_norm_triton.py"), str(seed)]
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        # The tree is last, so that its pal_fast does not hide an installed one.
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path, str(ROOT)]),
    }
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout)
    if isinstance(answer, str):
        pytest.skip(answer)
    found, launches = answer
    assert len(found) > 300
    for result in found:
        assert result["same_form"], result
        assert result["error"] <= BOUNDS[result["dtype"]], result  # NaN fails, too
    assert launches == LAUNCHES


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "programs"),
    # As planned for this GPU, and as for an H100, whose plan has narrower tiles and more warps for few channels.
    [(torch.float64, 0), (torch.float32, 0), (torch.bfloat16, 0), (torch.bfloat16, 528)],
    ids=str,
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(16, 24, 7, 7), (8, 40, 14, 14), (2, 2, 96, 97)], ids=str)
def test_a_gpu_agrees_with_the_compiled_operators(
    shape: tuple[int, ...],
    layout: torch.memory_format,
    dtype: torch.dtype,
    programs: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from support.batch_norm_operators import NAMES, inputs, outputs

    if programs:
        plan = importlib.import_module("pal_fast.kernels.batch_norm_plan")
        monkeypatch.setattr(plan, "wanted_programs", lambda tensor: programs)
    batch_norm_operators.define_triton()
    tensors, vectors = inputs(shape, dtype, layout)
    on_gpu = [tensor.cuda() for tensor in tensors], [vector.cuda() for vector in vectors]
    grad_sums = torch.randn(2, shape[1], dtype=vectors[0].dtype)
    for training, relu in ((True, False), (True, True), (False, True)):
        sums = grad_sums if training else None
        wanted = outputs("pal_fast", tensors, vectors, sums, training, relu)
        runs = [
            outputs("pal_fast_triton", *on_gpu, None if sums is None else sums.cuda(), training, relu) for _ in range(2)
        ]
        for name, value, again, judge in zip(NAMES, *runs, wanted, strict=True):
            assert torch.equal(value, again), f"{name} differs from one run to the next"
            error = (value.double().cpu() - judge.double()).norm() / (judge.double().norm() or 1.0)
            assert error <= BOUNDS[str(dtype)], f"{name} training={training} relu={relu}"


POINTERS_TO_LAYERS = ("input_ptr", "grad_ptr", "grad_grad_ptr", "output_ptr", "second_ptr")
ALIGNED = ("channels", "rows_v", "row_v", "per_split", "count")
#: Tiles as batch_norm_tile.py describes them: [elements of a channel], [samples, 8 planes of 7 x 7], [cells, channels].
TILES = {
    "a plane": {"FLAT": True, "VECTOR": 4, "LENGTH": 196, "CHANNELS": 1, "PLANE": 1, "COLUMNS": 1, "BLOCK_M": 2048},
    "planes": {"FLAT": False, "VECTOR": 8, "LENGTH": 49, "CHANNELS": 8, "PLANE": 49, "COLUMNS": 512, "BLOCK_M": 4},
    "channels": {"FLAT": False, "VECTOR": 8, "LENGTH": 196, "CHANNELS": 64, "PLANE": 1, "COLUMNS": 64, "BLOCK_M": 32},
}


def compiled_ptx(kernel: object, constants: dict[str, object], absent: tuple[str, ...], stored: str) -> str:
    """The PTX for an H100 of a kernel on layers of type `stored`."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names  # type: ignore[attr-defined]
    signature, known = {}, {}
    for index, name in enumerate(names):
        if name in constants or name in absent:
            signature[name], known[(index,)] = "constexpr", constants.get(name)
        elif name.endswith("_ptr"):
            signature[name] = f"*{stored if name in POINTERS_TO_LAYERS else 'fp32'}"
        else:
            signature[name] = "fp32" if name.startswith(("momentum", "eps")) else "i32"
    aligned = [["tt.divisibility", 16]]
    attributes = {(i,): aligned for i, name in enumerate(names) if name.endswith("_ptr") and name in signature}
    attributes = {key: value for key, value in attributes.items() if signature[names[key[0]]] != "constexpr"}
    attributes |= {(i,): aligned for i, name in enumerate(names) if name in ALIGNED}
    source = ASTSource(kernel, signature, constexprs=known, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="triton interprets in this process")
@pytest.mark.parametrize("kind", TILES)
@pytest.mark.parametrize("absent", [(), ("weight_ptr", "bias_ptr")], ids=["affine", "plain"])
def test_every_kernel_compiles_to_ptx(kind: str, absent: tuple[str, ...]) -> None:
    kernels = importlib.import_module("pal_fast.kernels.batch_norm_kernels")
    statistics = importlib.import_module("pal_fast.kernels.batch_norm_statistics")
    padded = {"CHANNELS_PADDED": TILES[kind]["CHANNELS"], "PLANE_PADDED": 1 if TILES[kind]["PLANE"] == 1 else 64}
    for stored, relu, index in (("fp32", False, triton.language.int32), ("bf16", True, triton.language.int64)):
        tile = TILES[kind] | {"INDEX": index, "T": triton.language.float32}
        flags = tile | {"RELU": relu}
        compiled_ptx(statistics.statistics_kernel, tile | padded, absent, stored)
        forward = compiled_ptx(kernels.forward_kernel, flags, absent, stored)
        if stored == "fp32":
            assert "ld.global.v4" in forward
            assert "st.global.v4" in forward
        for second, training in itertools.product((False, True), (True, False)):
            without = absent if second else (*absent, "grad_grad_ptr", "second_ptr", "sums_ptr", "grad_sums_ptr")
            if training:
                compiled_ptx(kernels.sums_kernel, flags | padded | {"SECOND": second}, without, stored)
            more = {"SECOND": second, "TRAINING": training, "BLOCK_S": 8}
            compiled_ptx(kernels.derivative_kernel, flags | more, without, stored)
    constants = {"BLOCK_C": 128, "BLOCK_S": 16, "T": triton.language.float32}
    for training in (True, False):
        compiled_ptx(statistics.final_statistics_kernel, constants | {"TRAINING": training}, (), "fp32")

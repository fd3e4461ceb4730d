"""Every kernel compiles for sm_90, and layers are read 16 bytes at a time. No GPU is needed."""

from __future__ import annotations

import os
from importlib.metadata import version

import pytest
import torch

pytest.importorskip("triton", reason="the package triton is not installed")

from support.triton_compile import Compiled, compiling, why_no_ptxas

from pal_fast.constants import GROUPING

pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="triton interprets in this process"),
    pytest.mark.skipif(bool(why_no_ptxas()), reason=why_no_ptxas()),
]

#: The PTX of a thread's widest load and store of a layer.
WIDE_LOAD, WIDE_STORE = "ld.global.v4.b32", "st.global.v4.b32"

#: The one kernel for which Triton 3.6, of PyTorch 2.11, takes all registers there are (benchmarks/NOTES.md).
FULL = ("pal_loss_backward_kernel", "each", torch.float32, torch.contiguous_format)


def compile_loss(
    grouping: str,
    dtype: torch.dtype,
    layout: torch.memory_format,
    shape: tuple[int, int, int, int] = (64, 1024, 14, 14),
    *,
    dense: bool = False,
    attribution: int = 0,
    absolute: bool = True,
    score: tuple[int, int, int] = (0, 0, 0),
    combine: int = 0,
    normalize: int = 0,
) -> list[Compiled]:
    """The kernels of forward and backward, in the order of their launches."""
    from pal_fast.kernels.pal_loss import pal_loss, pal_loss_backward

    batch, channels, height, width = shape
    computing = torch.float64 if dtype == torch.float64 else torch.float32
    layer = torch.empty(shape, dtype=dtype, memory_format=layout)
    f, g = (None if attribution == 1 else layer), (None if attribution == 2 else layer)
    points, heatmap = torch.empty(batch, 68, 2, dtype=computing), torch.empty(batch, height, width, dtype=computing)
    prior = (heatmap, None, None, None) if dense else (None, points, torch.ones(batch, 68) > 0, points[..., 0])
    options = (attribution, absolute, GROUPING.index(grouping), channels)
    with compiling() as compiled:
        out = pal_loss(
            f, g, *prior, torch.ones(batch, dtype=computing), 224.0, 224.0, 14.0, combine, normalize, *options, *score
        )
        pal_loss_backward(out[0], f, g, *out[1:], *options, True, True)
    return compiled


@pytest.mark.parametrize("grouping", GROUPING)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def test_the_loss_takes_one_launch_each_way_in_whole_vectors_without_spilling_a_tile(
    grouping: str, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    forward, backward = compile_loss(grouping, dtype, layout)
    triton_3_6 = version("triton").startswith("3.6.")
    for kernel in (forward, backward):
        # ptxas may spill a scalar of the epilogue to raise occupancy; a spilled tile would be hundreds of bytes.
        assert kernel.spilled_bytes <= 32, f"{kernel.name} spills {kernel.spilled_bytes} bytes"
        if not (triton_3_6 and (kernel.name, grouping, dtype, layout) == FULL):
            assert kernel.registers < 255 or not kernel.spilled_bytes, f"{kernel.name} needs more than all registers"
        if grouping != "each":
            assert kernel.registers <= 128, f"{kernel.name}: fewer programs are resident than are planned"
    assert WIDE_LOAD in backward.ptx
    assert WIDE_STORE in backward.ptx
    if grouping != "each" or layout == torch.channels_last:
        assert WIDE_LOAD in forward.ptx


def test_odd_maps_dense_priors_and_large_maps_compile_too() -> None:
    compile_loss("map", torch.float32, torch.contiguous_format, (64, 2048, 7, 7), dense=True, score=(1, 2, 2))
    compile_loss(
        "all", torch.float16, torch.contiguous_format, (8, 256, 56, 56), attribution=1, absolute=False, combine=1
    )
    compile_loss(
        "each", torch.float64, torch.channels_last, (2, 12, 13, 17), attribution=2, normalize=2, score=(0, 0, 1)
    )


@pytest.mark.parametrize("matrix", [True, False], ids=["sum", "max"])
def test_the_heatmap_and_its_gradient_compile(matrix: bool) -> None:
    from pal_fast.kernels.landmark_heatmap import landmark_heatmap, landmark_heatmap_backward

    points, grad = torch.empty(256, 68, 2), torch.empty(256, 224, 224)
    combine, normalize = (0, 2) if matrix else (1, 1)
    options = (224, 224, 224.0, 224.0, 14.0, combine, normalize)
    with compiling() as compiled:
        landmark_heatmap(points, None, points[..., 0], *options)
        landmark_heatmap_backward(grad, points, None, points[..., 0], *options, True, True)
    assert [kernel.name for kernel in compiled] == [
        "landmark_heatmap_kernel",
        "raw_gradient_kernel",
        "landmark_gradient_kernel",
    ]
    assert not any(kernel.spilled_bytes for kernel in compiled)
    assert ("mma" in compiled[0].ptx) == matrix, "the sum of Gaussians is a product of matrices"
    assert WIDE_STORE in compiled[0].ptx


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("width", [384, 768, 1000, 4096])
def test_the_second_derivatives_of_layers_compile_in_whole_vectors(width: int, dtype: torch.dtype) -> None:
    from pal_fast.kernels.layer_norm import layer_norm_double_backward
    from pal_fast.kernels.smooth_activations import activation_double_backward

    rows, weight = torch.empty(64 * 197, width, dtype=dtype), torch.empty(width, dtype=dtype)
    of_row = torch.empty(64 * 197, 1)
    with compiling() as compiled:
        layer_norm_double_backward(rows, rows, rows, weight, of_row, of_row, width)
        for kind in ("gelu", "gelu_tanh", "silu"):
            activation_double_backward(rows, rows, rows, kind)
    assert len(compiled) == 4
    for kernel in compiled:
        assert not kernel.spilled_bytes, kernel.name
        assert width % 16 or (WIDE_LOAD in kernel.ptx and WIDE_STORE in kernel.ptx), kernel.name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("columns", [64, 208, 784, 1376, 4096])
def test_the_kernels_of_attention_compile_in_whole_vectors(columns: int, dtype: torch.dtype) -> None:
    from pal_fast.kernels.attention import attention_backward, attention_double_backward, attention_weights

    weights, wide = torch.empty(6, 197, columns, dtype=dtype), torch.empty(6, 197, columns)
    with compiling() as compiled:
        attention_weights(wide, 0.125, columns - 3, dtype)
        attention_backward(weights, wide, 0.125)
        attention_double_backward(weights, torch.empty(6, 197, 2 * columns), wide, 0.125)
    assert len(compiled) == 3
    for kernel in compiled:
        assert not kernel.spilled_bytes, kernel.name
        assert WIDE_LOAD in kernel.ptx, kernel.name
        assert WIDE_STORE in kernel.ptx, kernel.name

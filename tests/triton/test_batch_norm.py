"""Triton's batch normalisation: how a layer is tiled, how often it is read, and the accuracy of a single read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from support.gpu import VIRTUAL
from support.triton_compile import PROCESSORS
from torch import Tensor

pytest.importorskip("triton", reason="the package triton is not installed")

LAYOUTS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.bfloat16, torch.float32]
#: Of ResNet-50: (channels, side).
LAYERS = [(64, 56), (256, 56), (128, 28), (512, 28), (256, 14), (1024, 14), (512, 7), (2048, 7)]
SECTOR = 32


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tensors", "tiles"), [(1, 2), (2, 1), (3, 1)])
def test_enough_bytes_of_a_large_layer_are_in_flight(
    tensors: int, tiles: int, dtype: torch.dtype, layout: torch.memory_format, for_an_h100: None
) -> None:
    """Little's law: an H100's 3.35 TB/s and 800 ns are 20 KB per multiprocessor."""
    from pal_fast.kernels.batch_norm_plan import parts_of

    for channels, side in LAYERS:
        layer = torch.empty((256, channels, side, side), dtype=dtype, device="meta").to(memory_format=layout)
        parts = parts_of(layer, tensors=tensors, tiles=tiles)
        row = parts.channels_per_tile * parts.plane * layer.element_size()
        asked = math.prod(parts.grid) * parts.block_m * row * tensors
        runs = (layout, side, tensors) == (torch.contiguous_format, 7, 3)  # registers allow no more
        assert asked / PROCESSORS >= (17 if runs else 20) * 1024, (channels, side, parts)


def test_every_element_belongs_to_one_program(for_an_h100: None) -> None:
    from pal_fast.kernels.batch_norm_plan import parts_of

    shapes = [
        (2, 3, 1, 1), (5, 7, 7, 7), (4, 6, 7, 7), (3, 70, 33, 5), (256, 20, 15, 15), (2, 3, 96, 97),
        (64, 64, 56, 56),
    ]  # fmt: skip
    kinds = set()
    for shape, dtype, layout, tensors in itertools.product(shapes, [*DTYPES, torch.float64], LAYOUTS, (1, 2, 3)):
        layer = torch.empty(shape, dtype=dtype, device="meta").to(memory_format=layout)
        parts = parts_of(layer, tensors=tensors)
        kinds.add((parts.flat, parts.plane > 1, parts.warps))
        assert parts.rows * parts.row == layer.numel()
        assert (parts.grid[0] - 1) * parts.channels_per_tile < parts.channels <= parts.grid[0] * parts.channels_per_tile
        assert 1 <= parts.splits <= -(-parts.rows // parts.block_m), "every split has a step"
        assert (parts.rows if parts.flat else parts.row) % parts.vector == 0
        assert parts.flat or parts.channels_per_tile * parts.plane % parts.vector == 0
        if parts.plane > 1:
            assert parts.channels % parts.channels_per_tile == 0
    assert kinds == {(True, False, 4), (False, True, 4), (False, False, 4), (False, False, 8)}


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(64, 4, 7, 7), (16, 4, 28, 28)], ids=["planes together", "planes alone"])
def test_the_variance_is_accurate_for_a_large_mean_and_an_unrepresentative_pivot(
    device: str, shape: tuple[int, ...], layout: torch.memory_format, seed: int
) -> None:
    from pal_fast.nn import batch_norm_operators

    batch_norm_operators.define_triton()
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) + 3000
    x[:1] = 0  # every slot's pivot, in the first programs
    x[:, 1] = 7.25  # no variance at all
    x = x.to(device).to(memory_format=layout)
    statistics = torch.ops.pal_fast_triton.batch_norm_statistics(x, None, None, True, 0.1, 1e-5)
    var, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(statistics[0].double(), mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(statistics[1].double(), (var + 1e-5).rsqrt(), rtol=2e-5, atol=0)


def run_all(
    tensors: list[Tensor], weight: Tensor, bias: Tensor
) -> list[tuple[dict[str, Tensor], dict[str, float], Any]]:
    """For each operator: its input and output layers, the expected reads or writes of each, and the counts."""
    from virtual_gpu.device import counted

    from pal_fast.nn import batch_norm_operators

    batch_norm_operators.define_triton()
    operators = torch.ops.pal_fast_triton
    x, grad, v = tensors
    found = []
    with counted() as traffic:
        statistics = operators.batch_norm_statistics(x, None, None, True, 0.1, 1e-5)
    found.append(({"x": x}, {"x": 1.0}, traffic))
    state = weight, bias, statistics
    with counted() as traffic:
        y = operators.batch_norm(x, *state, True, True)
    found.append(({"x": x, "y": y}, {"x": 1, "y": 1}, traffic))
    with counted() as traffic:
        dx, sums = operators.batch_norm_backward(grad, x, *state, True, True, True, True)
    found.append(({"x": x, "grad": grad, "dx": dx}, {"x": 2, "grad": 2, "dx": 1}, traffic))
    with counted() as traffic:
        d_grad, d_x, _ = operators.batch_norm_double_backward(v, None, grad, x, *state, sums, True, True, True)
    layers = {"x": x, "grad": grad, "v": v, "d_grad": d_grad, "d_x": d_x}
    found.append((layers, {"x": 2, "grad": 2, "v": 2, "d_grad": 1, "d_x": 1}, traffic))
    return found


@pytest.mark.gpu
@pytest.mark.skipif(not VIRTUAL, reason="the virtual GPU counts accesses, and this is none")
@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(8, 64, 28, 28), (8, 64, 14, 14), (16, 64, 7, 7)], ids=str)
def test_statistics_read_a_layer_once_and_derivatives_twice_in_whole_sectors(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, generator: torch.Generator
) -> None:
    tensors = [torch.randn(shape, generator=generator).to(dtype=dtype, memory_format=layout).cuda() for _ in range(3)]
    weight, bias = (torch.rand(shape[1], generator=generator).cuda() for _ in range(2))
    # Planes of 392 bytes, read alone, begin and end within a sector.
    slack = 1.16 if (dtype, layout, shape[2]) == (torch.bfloat16, torch.contiguous_format, 14) else 1.06
    for layers, times, traffic in run_all(tensors, weight, bias):
        for name, layer in layers.items():
            assert_times(traffic, layer, "read" if name in ("x", "grad", "v") else "write", times[name], slack)


def assert_times(
    traffic: Mapping[tuple[int, str], Any], layer: Tensor, direction: str, times: float, slack: float
) -> None:
    """The layer is accessed exactly this many times, and in whole sectors up to the slack."""
    counts = traffic[layer.data_ptr(), direction]
    assert counts.bytes == times * layer.nbytes, counts
    assert SECTOR * counts.units <= slack * times * layer.nbytes, counts
    other = "write" if direction == "read" else "read"
    assert (layer.data_ptr(), other) not in traffic

"""The kernels' memory traffic, counted: a layer is read once, its gradients are written once, in whole sectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from support.gpu import VIRTUAL
from torch import Tensor

import pal_fast
from pal_fast import dispatch
from pal_fast.nn import batch_norm_operators

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not VIRTUAL, reason="the virtual GPU counts accesses, and this is none"),
]

SECTOR = 32
#: Blocks read a few elements again, for a pivot, and share sectors where rows are not a whole number of sectors.
SLACK = 1.12
#: Triton's "each" reads three elements of a channel beforehand, and its 49 cells one by one, which L1 serves.
SLACK_OF_EACH = 4.0
#: Batch normalisation's rows of 49 8-byte vectors end within a sector, which two warps then request.
SLACK_OF_RUNS = 1.18


@pytest.fixture(params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    reason = dispatch.why_not(request.param, torch.device("cuda"))
    if reason:
        pytest.skip(reason)
    return str(request.param)


def counts(run: Callable[[], Any]) -> tuple[Any, Mapping[tuple[int, str], Any]]:
    from virtual_gpu.device import counted

    with counted() as found:
        result = run()
    return result, found


def assert_once(
    found: Mapping[tuple[int, str], Any], tensor: Tensor, direction: str, slack: float, part: float = 1.0
) -> None:
    """`part` of the tensor is accessed once."""
    traffic = found[tensor.data_ptr(), direction]
    assert part * tensor.nbytes <= traffic.bytes <= part * slack * tensor.nbytes, traffic
    assert SECTOR * traffic.units <= part * slack * tensor.nbytes, traffic


@pytest.mark.parametrize("channels", ["mean", "half", "all", "each"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(2, 256, 14, 14), (2, 512, 7, 7)], ids=str)
def test_the_loss_reads_a_layer_once_each_way_and_writes_its_gradients_once(
    backend: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    layout: torch.memory_format,
    channels: str,
    generator: torch.Generator,
) -> None:
    f, g = (
        torch.randn(shape, generator=generator).to(dtype=dtype, memory_format=layout).cuda().requires_grad_()
        for _ in range(2)
    )
    landmarks = (torch.rand(2, 68, 2, generator=generator) * 224).cuda()

    def forward() -> Tensor:
        return pal_fast.pal_loss(f, g, landmarks=landmarks, image_size=224, channels=channels, backend=backend)

    loss, found = counts(forward)
    part = 0.5 if channels == "half" else 1.0  # of every run in channels_last, too
    slack = SLACK_OF_EACH if (backend, channels) == ("triton", "each") else SLACK
    for tensor in (f, g):
        assert_once(found, tensor, "read", slack, part)
        assert (tensor.data_ptr(), "write") not in found

    gradients, found = counts(lambda: torch.autograd.grad(loss, [f, g]))
    for tensor in (f, g):
        traffic = found[tensor.data_ptr(), "read"]
        assert SECTOR * traffic.units <= part * SLACK * tensor.nbytes, traffic
    for gradient in gradients:
        assert_once(found, gradient, "write", SLACK)
        assert (gradient.data_ptr(), "read") not in found
    # The derivative's own plane weighs most on a small layer; it is read in vectors, too.
    layers = {tensor.data_ptr() for tensor in (f, g, *gradients)}
    other = sum(traffic.units for (begin, _), traffic in found.items() if begin and begin not in layers)
    if backend == "cuda" and channels != "each" and shape[2:] == (14, 14):
        assert SECTOR * other <= 0.4 * 4 * f.nbytes


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(256, 24, 7, 7), (96, 16, 14, 14), (48, 16, 28, 28)], ids=str)
def test_batch_normalisation_reads_a_layer_once_per_pass_in_whole_vectors(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, generator: torch.Generator
) -> None:
    device = torch.device("cuda")
    if reason := dispatch.why_not("cuda", device):
        pytest.skip(reason)
    assert batch_norm_operators.namespace_on(device) == "pal_fast"
    call = torch.ops.pal_fast
    x, g, v = (torch.randn(shape, generator=generator).to(dtype=dtype, memory_format=layout).cuda() for _ in range(3))
    weight, bias = (torch.rand(shape[1], generator=generator).cuda() for _ in range(2))
    # Statistics read a part for the pivot, then the layer once. Derivatives read it once for their sums, once again.
    statistics, found = counts(lambda: call.batch_norm_statistics(x, None, None, True, 0.1, 1e-5))
    assert_once(found, x, "read", 1.5 * SLACK_OF_RUNS)
    y, found = counts(lambda: call.batch_norm(x, weight, bias, statistics, True, True))
    assert_once(found, x, "read", SLACK_OF_RUNS)
    assert_once(found, y, "write", SLACK_OF_RUNS)
    arguments = (g, x, weight, bias, statistics)
    (dx, sums), found = counts(lambda: call.batch_norm_backward(*arguments, True, True, True, True))
    for tensor in (x, g):
        assert_once(found, tensor, "read", SLACK_OF_RUNS, 2.0)
        traffic = found[tensor.data_ptr(), "read"]
        assert traffic.bytes / traffic.requests >= 200, "less than 200 bytes a warp"
    assert_once(found, dx, "write", SLACK_OF_RUNS)
    (dg, d2x, _), found = counts(lambda: call.batch_norm_double_backward(v, sums, *arguments, sums, True, True, True))
    for tensor in (x, g, v):
        assert_once(found, tensor, "read", SLACK_OF_RUNS, 2.0)
    for tensor in (dg, d2x):
        assert_once(found, tensor, "write", SLACK_OF_RUNS)
    layers = {tensor.data_ptr() for tensor in (x, g, v, dg, d2x)}
    other = sum(traffic.units for (begin, _), traffic in found.items() if begin and begin not in layers)
    assert SECTOR * other <= 0.6 * x.nbytes, "what is known of channels weighs more than it may"


@pytest.mark.parametrize("side", [56, 112, 224])
def test_a_large_heatmap_is_written_once_without_shared_memory_bank_conflicts(
    backend: str, side: int, generator: torch.Generator
) -> None:
    landmarks = (torch.rand(2, 68, 2, generator=generator) * side).cuda()

    def draw() -> Tensor:
        return pal_fast.landmark_heatmap(landmarks, (side, side), sigma=side / 16, backend=backend)

    heatmap, found = counts(draw)
    assert_once(found, heatmap, "write", 1.0)
    assert (heatmap.data_ptr(), "read") not in found
    for direction in ("read", "write"):
        shared = found[0, direction]
        assert shared.units <= 1.02 * shared.least, f"{direction}: {shared}"
        # Hidden behind the writes: 132 multiprocessors write 25 bytes a cycle each, but read 128 of shared memory.
        assert shared.units < 3 * heatmap.nbytes / 25

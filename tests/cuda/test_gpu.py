"""Checks that need a GPU: launch counts, CUDA graphs, streams, large tensors, several devices, reproducibility."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.compare import assert_close
from support.loss_problems import make, same_bits
from torch import Tensor

import pal_fast
from benchmarks.profiling import kernels_of

pytestmark = pytest.mark.gpu(hardware=True)

CHANNELS = pytest.mark.parametrize("channels", ["mean", "half", "all", "each"])
LAYOUT = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])


def problem_of(seed: int, **case: Any) -> Any:
    return make({"shape": (8, 64, 14, 14), "dtype": torch.bfloat16, "landmarks": 68} | case, seed, "cuda")


def kernels_launched(run: Callable[[], object]) -> list[str]:
    """The names of the kernels that `run` launches; memory copies and fills do not count."""
    run()  # the stream's tickets are zeroed once
    names, _ = kernels_of(run)
    return [name for name in names if not name.startswith(("Memset", "Memcpy"))]


@LAYOUT
@CHANNELS
@pytest.mark.parametrize("landmarks", [68, None])
def test_one_launch_forward_and_one_backward(channels: str, layout: str, landmarks: int | None, seed: int) -> None:
    problem = problem_of(seed, channels=channels, layout=layout, landmarks=landmarks)
    f, g = (tensor.detach().requires_grad_() for tensor in (problem.activation, problem.gradient))

    def forward() -> Tensor:
        return pal_fast.pal_loss(f, g, **problem.tensors, **problem.options, backend="cuda")

    assert len(kernels_launched(forward)) == 1
    grad = torch.ones((), device="cuda")
    launched = kernels_launched(lambda: torch.autograd.grad(forward(), (f, g), grad))
    assert len(launched) == 2, launched


@pytest.mark.parametrize("normalize", ["none", "peak", "sum"])
@pytest.mark.parametrize("size", [(14, 14), (224, 224)])
def test_one_launch_for_heatmaps(size: tuple[int, int], normalize: str) -> None:
    landmarks = torch.rand(16, 68, 2, device="cuda") * 224

    def forward() -> Tensor:
        return pal_fast.landmark_heatmap(
            landmarks, size, image_size=(224, 224), sigma=14.0, normalize=normalize, backend="cuda"
        )

    assert len(kernels_launched(forward)) == 1


@LAYOUT
@CHANNELS
def test_a_thousand_repetitions_give_the_same_bits(channels: str, layout: str, seed: int) -> None:
    problem = problem_of(seed, channels=channels, layout=layout, shape=(5, 70, 13, 11))
    first = problem.solve("cuda")
    assert all(same_bits(problem.solve("cuda"), first) for _ in range(1000))


@CHANNELS
def test_a_cuda_graph_replays_correctly_between_other_work_on_its_stream(channels: str, seed: int) -> None:
    problem = problem_of(seed, channels=channels)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            problem.solve("cuda")
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = problem.solve("cuda")
    # The graph reads the tensors that it was captured with.
    other = problem_of(seed + 1, channels=channels)
    problem.activation.copy_(other.activation)
    problem.gradient.copy_(other.gradient)
    wanted = problem.solve("cuda")
    torch.cuda.synchronize()
    for _ in range(50):
        graph.replay()
        with torch.cuda.stream(stream):
            beside = problem.solve("cuda")
        torch.cuda.synchronize()
        assert same_bits(captured, wanted)
        assert same_bits(beside, wanted)


@CHANNELS
def test_streams_do_not_disturb_each_other(channels: str, seed: int) -> None:
    problems = [problem_of(seed + i, channels=channels, shape=(32, 128, 14, 14)) for i in range(4)]
    wanted = [problem.solve("cuda") for problem in problems]
    streams = [torch.cuda.Stream() for _ in problems]
    torch.cuda.synchronize()
    for _ in range(20):
        got = []
        for problem, stream in zip(problems, streams, strict=True):
            with torch.cuda.stream(stream):
                got.append(problem.solve("cuda"))
        torch.cuda.synchronize()
        assert all(same_bits(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.xdist_group("memory")  # eight at once would not fit a GPU
@LAYOUT
@CHANNELS
def test_a_tensor_of_more_than_two_to_the_31_elements(channels: str, layout: str, seed: int) -> None:
    shape = (3, 1024, 848, 848)  # 2.2e9 elements; the last sample lies beyond 2^30
    if torch.cuda.mem_get_info()[0] < 5 * 2 * 2209 * 2**20:
        pytest.skip("needs 22 GB of free GPU memory")
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    generator = torch.Generator("cuda").manual_seed(seed)
    f, g = (torch.empty(shape, dtype=torch.bfloat16, device="cuda").to(memory_format=form) for _ in range(2))
    for tensor in (f, g):
        tensor.normal_(generator=generator)
    heatmap = torch.rand(shape[0], *shape[2:], device="cuda", generator=generator)
    options: dict[str, Any] = {"channels": channels, "reduction": "none", "backend": "cuda"}

    def solve(part: slice) -> tuple[Tensor, Tensor, Tensor]:
        inputs = [tensor[part].detach().requires_grad_() for tensor in (f, g)]
        loss = pal_fast.pal_loss(*inputs, heatmap[part], **options)
        return loss.detach(), *torch.autograd.grad(loss.sum(), inputs)

    whole = [tensor[2:] for tensor in solve(slice(None))]
    alone = solve(slice(2, 3))
    for value, wanted in zip(whole, alone, strict=True):
        assert (value.float() - wanted.float()).norm() <= 8e-3 * wanted.float().norm()


@pytest.mark.xdist_group("memory")
def test_a_heatmap_of_two_to_the_30_cells_is_refused() -> None:
    if torch.cuda.mem_get_info()[0] < 5 * 2**30:
        pytest.skip("needs 5 GB of free GPU memory")
    size = (2**15, 2**15)
    with pytest.raises(RuntimeError, match="a heatmap of 32768 x 32768 cells is too large"):
        pal_fast.landmark_heatmap(torch.ones(1, 1, 2, device="cuda"), size, image_size=size, backend="cuda")


def test_tensors_on_a_device_that_is_not_current(seed: int) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    for channels in ("mean", "all", "each"):
        here = make({"channels": channels, "shape": (4, 16, 14, 14)}, seed, "cuda:0").solve("cuda")
        there = make({"channels": channels, "shape": (4, 16, 14, 14)}, seed, "cuda:1").solve("cuda")
        assert torch.cuda.current_device() == 0
        assert there[0].device.index == 1
        assert_close(there[0].cpu(), here[0].cpu(), torch.float32)
        for value, wanted in zip(there[1], here[1], strict=True):
            assert_close(value.cpu(), wanted.cpu(), torch.float32)


def test_the_device_can_run_the_kernels() -> None:
    assert pal_fast.backends()["cuda"].available, pal_fast.backends()["cuda"].detail
    assert torch.ops.pal_fast.cuda_status(torch.cuda.device_count()).startswith("there is no device")

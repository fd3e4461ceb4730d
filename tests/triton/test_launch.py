"""What the host caches between launches, and how it tiles a layer: plain Python, tested without a launch."""

from __future__ import annotations

import itertools
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="the package triton is not installed")

from pal_fast.kernels import launch, pal_loss, sweep
from support.triton_compile import specialise
from triton.runtime.jit import JITFunction

from pal_fast.constants import GROUPING


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A simulated GPU; `now` is the current stream, `capturing` whether it is being captured."""
    state = {"now": 0, "capturing": False}
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state["capturing"])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=state["now"]))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(launch, "_arenas", {})
    monkeypatch.setattr(launch, "_slots", {})
    return state


def test_every_stream_keeps_its_own_counters(streams: dict[str, Any]) -> None:
    like = SimpleNamespace(is_cuda=True, device=torch.device("cpu"))
    kept = []
    for stream in range(launch.STREAMS):
        streams["now"] = stream
        tickets = launch.zeroed_tickets(100, like)
        assert not tickets.any()
        tickets += 1  # so that another stream's tickets would show
        kept.append(tickets.data_ptr())
    assert len(set(kept)) == launch.STREAMS
    streams["now"] = 3
    assert launch.zeroed_tickets(7, like).data_ptr() == kept[3]


def test_threads_that_first_use_a_device_at_once_share_no_counters(
    streams: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If kernels of two streams shared a counter, each would count the other's programs as its own."""
    like = SimpleNamespace(is_cuda=True, device=torch.device("cpu"))
    own, prepare = threading.local(), launch.prepare_tickets

    def slowly(device: torch.device) -> torch.Tensor:
        time.sleep(0.05)  # like a first allocation, during which the other thread gets as far
        return prepare(device)

    monkeypatch.setattr(launch, "prepare_tickets", slowly)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=own.stream))
    found: dict[int, int] = {}

    def count(stream: int) -> None:
        own.stream = stream
        found[stream] = launch.zeroed_tickets(5, like).data_ptr()

    threads = [threading.Thread(target=count, args=(stream,)) for stream in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found.values())) == 4


@pytest.mark.parametrize("shape", [(1024, 14, 14), (512, 28, 28), (2048, 7, 7)], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("grouping", GROUPING)
def test_a_smaller_last_batch_does_not_recompile(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], channels_last: bool, grouping: str
) -> None:
    """A compilation takes seconds, and may come too late for a CUDA graph's warm-up."""
    monkeypatch.setattr(launch, "INTERPRETED_PROCESSORS", 132)
    kernels: set[Any] = set()

    def run(self: Any, *, grid: tuple[int, ...], warmup: bool, **arguments: Any) -> None:
        options = {name: arguments.pop(name) for name in launch.OPTIONS}
        kernels.add((self.__name__, *(str(part) for part in specialise(self, arguments)), str(options)))

    monkeypatch.setattr(JITFunction, "run", run)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for batch in (*range(1, 40), *range(40, 257, 9), 256):
        layer = torch.empty((batch, *shape), dtype=torch.bfloat16, device="meta", memory_format=layout)
        plane, factor = (torch.empty(size, device="meta") for size in ((batch, *shape[1:]), (batch,)))
        landmarks = torch.empty(batch, 68, 2, device="meta")
        which = GROUPING.index(grouping)
        options = (0, True, which, shape[0])
        pal_loss.pal_loss(layer, layer, None, landmarks, None, None, None, 224, 224, 14, 0, 0, *options, 0, 0, 0)
        groups = {"map": 0, "all": 1, "each": shape[0]}[grouping]
        coefficients = torch.empty(batch, groups, 3, device="meta")
        pal_loss.pal_loss_backward(factor.sum(), layer, layer, plane, coefficients, factor, *options, True, True)
    assert len({name for name, *_ in kernels}) == 2
    assert len(kernels) <= 4, sorted(name for name, *_ in kernels)


def test_captured_streams_large_batches_and_excess_streams_get_fresh_zeros(streams: dict[str, Any]) -> None:
    like = SimpleNamespace(is_cuda=True, device=torch.device("cpu"))
    arena = launch.prepare_tickets(like.device)
    inside = range(arena.data_ptr(), arena.data_ptr() + arena.nbytes)
    assert launch.zeroed_tickets(5, like).data_ptr() in inside
    streams["capturing"] = True
    assert launch.zeroed_tickets(5, like).data_ptr() not in inside
    streams["capturing"] = False
    large = launch.zeroed_tickets(launch.TICKETS + 1, like)
    assert large.data_ptr() not in inside
    assert large.numel() == launch.TICKETS + 1
    for stream in range(launch.STREAMS + 1):
        streams["now"] = stream
        tickets = launch.zeroed_tickets(5, like)
    assert tickets.data_ptr() not in inside
    assert not tickets.any()


@pytest.mark.parametrize("channels_last", [False, True])
def test_every_element_is_visited_once_and_every_row_starts_on_a_vector(
    monkeypatch: pytest.MonkeyPatch, channels_last: bool
) -> None:
    monkeypatch.setattr(launch, "INTERPRETED_PROCESSORS", 132)
    sides, dtypes = ((1, 1), (7, 7), (14, 14), (13, 17), (28, 28), (56, 57)), (torch.float32, torch.bfloat16)
    for (height, width), channels, batch, dtype in itertools.product(sides, (1, 3, 64, 2048), (1, 16, 700), dtypes):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        layer = torch.empty((batch, channels, height, width), dtype=dtype, device="meta", memory_format=layout)
        for count in {1, max(1, channels // 2), channels}:
            plan = sweep.plan(layer, count=count, swept=count)
            cells = height * width
            vector = launch.VECTOR_BYTES // dtype.itemsize
            if plan.channels_last:
                assert plan.steps * plan.block_p >= count > (plan.steps - 1) * plan.block_p
                assert 1 <= plan.tiles <= -(-cells // plan.block_r)
            else:
                assert plan.period % cells == 0
                if channels * cells % vector == 0:
                    assert plan.period % vector == 0
                rows = -(-count * cells // plan.period)
                assert plan.steps * plan.block_r >= rows > (plan.steps - 1) * plan.block_r
                assert plan.tiles * plan.block_p >= plan.period
            assert 1 <= plan.splits <= plan.steps
            assert plan.programs >= batch
            assert plan.programs <= max(batch * plan.tiles, 132 * launch.PROGRAMS_PER_PROCESSOR)


def test_a_double_is_passed_as_two_floats() -> None:
    for value in (1 / 3, -0.5 / 14**2, 3.2e30, 1e-30, 224 / 14):
        high, low = launch.high_and_low(value)
        assert float(torch.tensor(high, dtype=torch.float32)) == high
        assert abs(high + low - value) <= abs(value) * 2**-45
    assert launch.high_and_low(1e300)[0] == float("inf")

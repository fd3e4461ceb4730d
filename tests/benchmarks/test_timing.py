"""GPU timing excludes host time: a call that the host enqueued too late is timed again after a longer GPU sleep."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import timing
from benchmarks.timing import Call, EventTimer


class Clock:
    """Simulates a GPU and its host in one thread: work is queued and starts when the GPU's sleep ends."""

    def __init__(self) -> None:
        self.host = self.gpu = 0.0  # milliseconds
        self.slept: list[int] = []

    def sleep(self, cycles: int) -> None:
        self.slept.append(cycles)
        self.gpu = max(self.gpu, self.host) + cycles / 2e6

    def launch(self, host: float, gpu: float) -> None:
        self.host += host
        self.gpu = max(self.gpu, self.host) + gpu

    def wait(self) -> None:
        self.host = self.gpu = max(self.host, self.gpu)

    def event(self, **_: Any) -> Any:
        event = SimpleNamespace(at=0.0)
        event.record = lambda: setattr(event, "at", max(self.gpu, self.host))
        event.query = lambda: event.at <= self.host
        event.synchronize = self.wait
        event.elapsed_time = lambda other: other.at - event.at
        return event


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=4096))
    monkeypatch.setattr(torch.cuda, "Event", clock.event)
    monkeypatch.setattr(torch.cuda, "_sleep", clock.sleep)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _=None: clock.wait())
    return clock


def many_launches(clock: Clock, count: int) -> Call:
    def run(_: Any) -> None:
        for _ in range(count):
            clock.launch(host=0.01, gpu=0.002)

    return Call(run)


@pytest.mark.parametrize("count", [2, 40, 300])
def test_gaps_between_any_number_of_launches_are_not_measured(clock: Clock, count: int) -> None:
    timer, call = EventTimer(torch.device("cpu"), launches=False), many_launches(clock, count)
    assert timer(call) == pytest.approx(count * 0.002e-3)
    tries = len(clock.slept)
    assert timer(call) == pytest.approx(count * 0.002e-3)
    assert len(clock.slept) == tries + 1, "the sleep that sufficed is kept"


def test_timing_with_launches_includes_host_time_and_uses_no_gpu_sleep(clock: Clock) -> None:
    timer = EventTimer(torch.device("cpu"), launches=True)
    assert timer(many_launches(clock, 40)) == pytest.approx(40 * 0.01e-3 + 0.002e-3)
    assert not clock.slept


def test_a_call_that_synchronises_is_finally_timed_without_a_gpu_sleep(clock: Clock) -> None:
    def run(_: Any) -> None:
        clock.wait()
        clock.launch(host=5, gpu=1)

    call = Call(run)
    timer = EventTimer(torch.device("cpu"), launches=False)
    assert timer(call) == pytest.approx(6e-3)
    assert call.sleep == 0
    assert len(clock.slept) < 10
    assert max(clock.slept) == timing.LONGEST_SLEEP

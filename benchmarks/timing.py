"""Timing of a call: by CUDA events with a cold L2 cache, or by wall-clock time on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .profiling import peak_of

#: GPU cycles that the host gets to enqueue a call: at first, about half a millisecond, and at most.
FIRST_SLEEP, LONGEST_SLEEP = 1 << 20, 1 << 25


@dataclass
class Call:
    """The timed call: `run`, applied to the result of `before`, which is not timed."""

    run: Callable[[Any], Any]
    before: Callable[[], Any] = lambda: None
    #: Cycles that the GPU sleeps while the host enqueues the call; `EventTimer` determines how many it takes.
    sleep: int = FIRST_SLEEP


def timer_of(device: torch.device, launches: bool = False) -> Callable[[Call], float]:
    """Returns a timer for calls on `device`, in seconds. `launches`: on a GPU, include the host's launch time."""
    return EventTimer(device, launches) if device.type == "cuda" else wall_time


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of a call and of the work that it enqueues on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def wall_time(call: Call) -> float:
    state = call.before()
    start = time.perf_counter()
    result = call.run(state)
    seconds = time.perf_counter() - start
    del result, state
    return seconds


class EventTimer:
    """GPU time between two events, with a cold L2.

    The GPU sleeps while the host enqueues the whole call, so that gaps between launches are not measured, whether the
    kernels are many or few. If it wakes before everything is enqueued, the call is timed again after a longer sleep. A
    call that itself synchronises with the GPU outlasts any sleep, and gets none. With `launches` the GPU waits for the
    host, as in a real program.
    """

    def __init__(self, device: torch.device, launches: bool) -> None:
        self._device, self._launches = device, launches
        size = max(1 << 26, 3 * torch.cuda.get_device_properties(device).L2_cache_size)
        self._flush = torch.zeros(size // 4, device=device)
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, call: Call) -> float:
        seconds, late = self._once(call)
        while late and call.sleep:
            call.sleep = 2 * call.sleep if call.sleep < LONGEST_SLEEP else 0
            seconds, late = self._once(call)
        return seconds

    def _once(self, call: Call) -> tuple[float, bool]:
        """Seconds, and whether the GPU woke before the host had finished."""
        state = call.before()
        # Read, not written: dirty lines would be written back during the measured time.
        self._flush.amax()
        if self._launches:
            torch.cuda.synchronize(self._device)
        elif call.sleep:
            torch.cuda._sleep(call.sleep)
        self._start.record()
        call.run(state)
        self._end.record()
        late = not self._launches and self._start.query()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3, late


def peak_memory(call: Call, device: torch.device) -> int:
    """Peak bytes of a call beyond those allocated before and, if it returns gradients, beyond those."""
    results = call.run(call.before())  # warm-up: workspaces cached between calls do not count
    kept = sum(t.nbytes for t in results) if isinstance(results, tuple) else 0
    del results
    state = call.before()
    return max(0, peak_of(lambda: call.run(state), device) - kept)


def quantile(values: Sequence[float], q: float) -> float:
    return float(np.quantile(values, q, method="nearest"))

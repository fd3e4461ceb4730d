"""Peak memory and operator calls of a step, on the GPU and on the CPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # no warnings about an absent GPU

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

#: Entries that the profiler may put on the GPU's timeline although they are no GPU work.
NO_WORK = ("Context Sync", "Stream Sync", "Event Sync", "Stream Wait Event")


class Calls(TorchDispatchMode):
    """Counts operator calls."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def calls_of(step: Callable[[], Tensor], device: torch.device) -> int:
    """On the CPU, the number of operator calls below autograd; on CUDA, of launched kernels."""
    if device.type != "cuda":
        with Calls() as calls:
            step()
        return calls.count
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize(device)
    on_gpu = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return sum(name not in NO_WORK for name in on_gpu)


def peak_of(step: Callable[[], Tensor], device: torch.device) -> int:
    """Peak bytes allocated by PyTorch beyond those allocated before the call, gradients included.

    Memory that a library allocates elsewhere (oneDNN's scratch memory) is not included.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        live += change.nbytes()
        peak = max(peak, live)
    return peak

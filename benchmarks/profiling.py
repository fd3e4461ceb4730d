"""What PyTorch's profiler and allocator say of a call: its kernels, its operator calls and its peak memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # no warnings about an absent GPU

import torch
from torch.utils._python_dispatch import TorchDispatchMode

#: Entries that the profiler may put on the GPU's timeline although they are no GPU work.
NO_WORK = ("Context Sync", "Stream Sync", "Event Sync", "Stream Wait Event")


def kernels_of(run: Callable[[], Any]) -> tuple[list[str], Any]:
    """The names of what a call launches on the GPU, fills and copies included, and its result."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        result = run()
        torch.cuda.synchronize()
    return gpu_work(profile), result


def gpu_work(profile: Any) -> list[str]:
    """The names on the GPU's timeline of a finished `torch.profiler.profile`: kernels, fills and copies."""
    on_gpu = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return [name for name in on_gpu if name not in NO_WORK]


class Calls(TorchDispatchMode):
    """Counts operator calls."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def calls_of(run: Callable[[], Any], device: torch.device) -> int:
    """On the CPU, the number of operator calls below autograd; on CUDA, of launched kernels."""
    if device.type == "cuda":
        return len(kernels_of(run)[0])
    with Calls() as calls:
        run()
    return calls.count


def peak_of(run: Callable[[], Any], device: torch.device) -> int:
    """Peak bytes allocated by PyTorch beyond those allocated before the call, results included.

    On the CPU, from the allocation record of PyTorch's profiler. Memory that a library allocates elsewhere (NumPy's
    arrays, oneDNN's scratch memory) is not included.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        live += change.nbytes()
        peak = max(peak, live)
    return peak

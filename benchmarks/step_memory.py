"""Peak memory and operator calls of a step, also on the CPU, where no allocator keeps the score."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Footprint(TorchDispatchMode):
    """Counts operator calls, and the bytes of the storages that operators made and that are still alive.

    What a library takes and returns inside one operator (a convolution's workspace) is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.live = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given:  # not a view, not in place
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        known = self._known.get(address)
        if known is not None and known() is not None:
            return
        size = storage.nbytes()

        def freed(_: object) -> None:
            self.live -= size
            self._known.pop(address, None)

        self._known[address] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)


def measure_footprint(step: Callable[[], Tensor], device: torch.device) -> tuple[int, int]:
    """(peak bytes beyond what was there before, operator calls) of one step, its gradients included.

    On CUDA the peak is the allocator's and the calls are the kernels that were launched.
    """
    if device.type != "cuda":
        with Footprint() as footprint:
            step()
        return footprint.peak, footprint.calls
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize(device)
    return peak, sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())

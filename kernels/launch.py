"""What every launch needs from the host: the device guard, vector widths, programs to aim for, counters."""

from __future__ import annotations

import ctypes
import math
import threading
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
import triton.language as tl
from torch import Tensor

#: Bytes of the widest load or store a thread can make.
VECTOR_BYTES = 16

#: Of every launch. A product that the compiler fused into the first exchange of a sum over lanes would be rounded in
#: one lane and not in its partner: lanes that ought to hold the same sum would differ in its last bit, and which of
#: them is taken is not settled. So no product is fused into a sum.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}

#: Programs to aim for on each multiprocessor: all are resident at once (128 threads of up to 128 registers), with
#: enough loads in flight to hide the latency of memory, and few enough that a sample's partial sums stay small beside
#: its input.
PROGRAMS_PER_PROCESSOR = 4

#: What the interpreter plans for, so that small tensors are split as large ones are on a GPU.
INTERPRETED_PROCESSORS = 4


def interpreting() -> bool:
    """Whether triton runs its kernels on the CPU. Settled when triton is first imported."""
    return type(tl.sum).__name__ == "InterpretedFunction"


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's GPU the current one, as a triton launch wants it; nothing on the CPU."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """The type a kernel computes in: float64 for float64, float32 for the rest."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def vector_width(dtype: torch.dtype, *extents: int) -> int:
    """Elements of the widest vector that divides every one of `extents` (in elements)."""
    return math.gcd(VECTOR_BYTES // dtype.itemsize, *extents)


def power_of_two(n: int) -> int:
    """The least power of two that is at least `n`."""
    return 1 << max(0, n - 1).bit_length()


def ceil_div(n: int, d: int) -> int:
    return -(-n // d)


@lru_cache(maxsize=64)
def _processors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def wanted_programs(tensor: Tensor) -> int:
    """How many programs keep the tensor's device busy."""
    processors = _processors(tensor.get_device()) if tensor.is_cuda else INTERPRETED_PROCESSORS
    return processors * PROGRAMS_PER_PROCESSOR


def tile_sides(height: int, width: int, most_rows: int, most_columns: int) -> tuple[int, int]:
    """Rows and columns of a tile of a heatmap: powers of two from 16, the least of a matrix product, to the most."""
    rows, columns = max(16, power_of_two(height)), max(16, power_of_two(width))
    return min(rows, most_rows), min(columns, most_columns)


def high_and_low(value: float) -> tuple[float, float]:
    """A double as the sum of two float32 numbers: triton passes a Python float as float32."""
    high = ctypes.c_float(value).value
    low = value - high if math.isfinite(high) else 0.0
    return high, low


#: Counters that a stream keeps, and streams of a device that can.
COUNTERS, STREAMS = 4096, 64

_lock = threading.Lock()
_arenas: dict[torch.device, Tensor] = {}  # [STREAMS, COUNTERS] int32
_slots: dict[tuple[torch.device, int], Tensor] = {}  # a row for each stream


def prepare_counters(device: torch.device) -> Tensor:
    """Allocates the counters of a device, once.

    To be called before any CUDA graph is warmed up: memory that is first taken during a warm-up comes from the graph's
    own pool, whose replays write over it.
    """
    if device not in _arenas:
        _arenas[device] = torch.zeros((STREAMS, COUNTERS), dtype=torch.int32, device=device)
        torch.cuda.synchronize(device)  # other streams use it, too
    return _arenas[device]


def _take_slot(key: tuple[torch.device, int]) -> Tensor | None:
    """The counters of a device's stream, which no other stream gets, whichever threads ask; None if all are taken."""
    with _lock:
        taken = sum(device == key[0] for device, _ in _slots)
        if key not in _slots and taken < STREAMS:
            _slots[key] = prepare_counters(key[0])[taken]
        return _slots.get(key)


def zeroed_counters(count: int, like: Tensor) -> Tensor:
    """`count` int32 zeros for a kernel that counts programs and leaves the counters at zero.

    Each stream keeps its own, so that no call pays for a fill. While a graph is captured they are the graph's own: its
    replays may overlap with other work of the stream. Very large batches are counted in fresh memory, too.
    """
    if like.is_cuda and count <= COUNTERS and not torch.cuda.is_current_stream_capturing():
        key = like.device, torch.cuda.current_stream(like.device).cuda_stream
        counters = _slots.get(key)
        if counters is None:
            counters = _take_slot(key)
        if counters is not None:
            return counters
    return torch.zeros(count, dtype=torch.int32, device=like.device)


def in_format_of(layer: Tensor, other: Tensor | None) -> Tensor | None:
    """`other` in the memory format of `layer`, contiguous or channels_last; a copy only where they differ.

    A graph that torch.compile made may hand over another format than it was traced with: PyTorch orders the strides of
    an expanded tensor one way when traced and another when run.
    """
    if other is None or other.stride() == layer.stride():
        return other
    return other.contiguous(memory_format=torch.contiguous_format if layer.is_contiguous() else torch.channels_last)

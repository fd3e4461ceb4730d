"""What every launch needs from the host: device guard, vector widths, target number of programs, arrival counters."""

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

#: Options of every launch. FP fusion is off for reproducibility: a product fused into the first exchange of a reduction
#: over lanes would be rounded in one lane and not in its partner. Lanes that should hold the same sum would differ in
#: the last bit, and which lane's value is used is unspecified.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}

#: Target number of programs per multiprocessor: they are resident at once where 128 threads take up to 128 registers
#: (benchmarks/NOTES.md), have enough loads in flight to hide memory latency, and are few enough that a sample's partial
#: sums are small compared with its input.
PROGRAMS_PER_PROCESSOR = 4

#: Multiprocessors assumed under the interpreter, so that small tensors are split as large ones are on a GPU.
INTERPRETED_PROCESSORS = 4


def interpreting() -> bool:
    """Whether triton interprets its kernels on the CPU. Fixed when triton is first imported."""
    return type(tl.sum).__name__ == "InterpretedFunction"


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's GPU the current device, as a triton launch requires; a no-op on the CPU."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """The type a kernel computes in: float64 for float64, float32 for the rest."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def vector_width(dtype: torch.dtype, *extents: int) -> int:
    """Elements of the widest vector that divides each of `extents` (in elements)."""
    return math.gcd(VECTOR_BYTES // dtype.itemsize, *extents)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least `n`."""
    return 1 << max(0, n - 1).bit_length()


def ceil_div(n: int, d: int) -> int:
    return -(-n // d)


def fewest_splits(steps: int, most: int) -> int:
    """The fewest splits, of at most `most`, whose longest is as short as with `most`."""
    return ceil_div(steps, ceil_div(steps, most))


@lru_cache(maxsize=64)
def _processors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def wanted_programs(tensor: Tensor) -> int:
    """How many programs keep the tensor's device busy."""
    processors = _processors(tensor.get_device()) if tensor.is_cuda else INTERPRETED_PROCESSORS
    return processors * PROGRAMS_PER_PROCESSOR


def tile_sides(height: int, width: int, most_rows: int, most_columns: int) -> tuple[int, int]:
    """Rows and columns of a heatmap tile: powers of two from 16, the minimum of `tl.dot`, to the given maxima."""
    rows, columns = max(16, power_of_two(height)), max(16, power_of_two(width))
    return min(rows, most_rows), min(columns, most_columns)


def high_and_low(value: float) -> tuple[float, float]:
    """A double as the sum of two float32 values: triton passes a Python float as float32."""
    high = ctypes.c_float(value).value
    low = value - high if math.isfinite(high) else 0.0
    return high, low


#: Counters per stream, and streams per device that have counters of their own.
TICKETS, STREAMS = 4096, 64

_lock = threading.Lock()
_arenas: dict[torch.device, Tensor] = {}  # [STREAMS, TICKETS] int32
_slots: dict[tuple[torch.device, int], Tensor] = {}  # a row for each stream


def prepare_tickets(device: torch.device) -> Tensor:
    """Allocates the counters of a device, once.

    Must be called before any CUDA graph is warmed up: memory first allocated during a warm-up comes from the graph's
    private pool and is overwritten by its replays.
    """
    if device not in _arenas:
        _arenas[device] = torch.zeros((STREAMS, TICKETS), dtype=torch.int32, device=device)
        torch.cuda.synchronize(device)  # other streams use it too
    return _arenas[device]


def _take_slot(key: tuple[torch.device, int]) -> Tensor | None:
    """The counters of a device's stream, shared with no other stream; None if all are taken. Thread-safe."""
    with _lock:
        taken = sum(device == key[0] for device, _ in _slots)
        if key not in _slots and taken < STREAMS:
            _slots[key] = prepare_tickets(key[0])[taken]
        return _slots.get(key)


def zeroed_tickets(count: int, like: Tensor) -> Tensor:
    """At least `count` int32 arrival counters, all zero, for a kernel that resets them to zero.

    Each stream keeps its own, so that no call pays for a fill. A graph under capture gets its own, because its replays
    may overlap with other work of the stream. Very large batches also get fresh memory.
    """
    if like.is_cuda and count <= TICKETS and not torch.cuda.is_current_stream_capturing():
        key = like.device, torch.cuda.current_stream(like.device).cuda_stream
        tickets = _slots.get(key)
        if tickets is None:
            tickets = _take_slot(key)
        if tickets is not None:
            return tickets
    return torch.zeros(count, dtype=torch.int32, device=like.device)


def in_format_of(layer: Tensor, other: Tensor | None) -> Tensor | None:
    """`other` in the memory format of `layer`, contiguous or channels_last; a copy only if they differ.

    A graph compiled by torch.compile may pass another format than it was traced with: PyTorch orders the strides of an
    expanded tensor differently when tracing and when running.
    """
    if other is None or other.stride() == layer.stride():
        return other
    return other.contiguous(memory_format=torch.contiguous_format if layer.is_contiguous() else torch.channels_last)

"""The processes, the device and the precision of a training run: the parts of Accelerate that are needed."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from typing import Any

import torch

from pal_fast._version import __version__


def make_accelerator(device: str, precision: str) -> Any:
    """An `accelerate.Accelerator` for one process, or for those started by torchrun or `accelerate launch`.

    Raises: ImportError without Accelerate; ValueError for a device or distribution type that is not supported.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import DistributedType
    except ImportError as error:
        raise ImportError("training needs accelerate: pip install 'pal_fast[train]'") from error
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda', but PyTorch sees no CUDA device; run `pal-fast info` for the reason")
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    # Accelerate never changes a process's first settings, and an earlier run in this process may have had others: it
    # refuses new ones, or stays on the CPU without a word.
    try:
        accelerator = Accelerator(cpu=device == "cpu", mixed_precision=precision)
        kept = device != "cpu" and accelerator.device.type == "cpu" and torch.cuda.is_available()
    except ValueError:
        if distributed:
            raise
        kept = True
    if kept and not distributed:
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=device == "cpu", mixed_precision=precision)
    if device == "cuda" and accelerator.device.type != "cuda":
        raise ValueError(f"device='cuda', but Accelerate is configured for {accelerator.device}")
    if accelerator.mixed_precision != precision:
        raise ValueError(f"precision={precision!r} is not available on {accelerator.device}")
    known = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
    if accelerator.distributed_type not in known:
        raise ValueError(
            f"Accelerate is configured for {accelerator.distributed_type.value}; pal-fast train needs one process, or "
            "several with DistributedDataParallel (accelerate launch --multi_gpu, torchrun)"
        )
    return accelerator


def is_main() -> bool:
    """Whether this is the first of the launched processes, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def is_alone() -> bool:
    """Whether this is the only launched process."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Reproducible kernels where PyTorch has them, with a warning where it has none; restored afterwards."""
    memory, cudnn = torch.utils.deterministic, torch.backends.cudnn
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        memory.fill_uninitialized_memory,  # type: ignore[attr-defined]
        cudnn.deterministic,
        cudnn.benchmark,
    )
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Uninitialised memory is never read; filling it would cost a pass over every output.
        memory.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    cudnn.deterministic, cudnn.benchmark = wanted, not wanted
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = before[2]  # type: ignore[attr-defined]
        cudnn.deterministic, cudnn.benchmark = before[3:]


def environment(accelerator: Any) -> dict[str, Any]:
    """What a run's figures depend on besides its config."""
    versions = {}
    for name in ("torch", "torchvision", "timm", "accelerate", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    device = accelerator.device
    return {
        "pal_fast": __version__,
        **versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
    }

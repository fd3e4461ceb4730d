"""The machine that a figure comes from: its name, versions and load, and how fast it copies memory."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch

import pal_fast

#: Columns that every row of every result ends with.
COLUMNS = (
    "device", "driver", "threads", "load", "python", "torch", "cuda", "triton", "pal_fast", "extension",
)  # fmt: skip

#: Bytes of the tensor that the copy reads, and of the one that it writes: past every cache.
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}


def environment(device: torch.device) -> dict[str, object]:
    """COLUMNS by name. `load` is the system's average of the last minute: how quiet the machine was."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "driver": _driver() if device.type == "cuda" else "",
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else "",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "triton": version("triton"),
        "pal_fast": pal_fast.__version__,
        "extension": _extension(),
    }


@lru_cache(maxsize=1)
def processor() -> str:
    """The CPU's model and its vector extensions, as the system tells."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in lines.items()}
        name = fields.get("model name", name)
    return f"{name}, {os.cpu_count()} CPUs, {torch.backends.cpu.get_cpu_capability()}"


def version(package: str) -> str:
    """A package's version, or "" where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


@lru_cache(maxsize=1)
def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.split("\n")[0].strip() if found.returncode == 0 else ""


@lru_cache(maxsize=1)
def _extension() -> str:
    """What the compiled operators were built for."""
    status = pal_fast.backends()
    if not status["cpu"].available:
        return "none"
    from pal_fast import _extension

    return _extension.build_info().get("cuda") or "CPU only"


def copy(device: torch.device, quick: bool = False) -> tuple[Callable[[], object], int]:
    """A copy between two large tensors, to be timed beside what is measured, and the bytes that it moves."""
    count = COPY_BYTES[device.type] // 4 // (16 if quick else 1)
    source = torch.ones(count, device=device)
    target = torch.empty_like(source).fill_(0)
    return lambda: target.copy_(source), 2 * source.nbytes

"""The machine on which figures are measured: its name, versions and load, and its memory copy rate.

python -m benchmarks.machine    prints these as JSON
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch

import pal_fast

from .timing import seconds_of

#: The last columns of every row of every result.
COLUMNS = (
    "device", "driver", "threads", "load", "matmul_gflop_s", "python", "torch", "cuda", "triton", "pal_fast",
    "extension",
)  # fmt: skip

#: Bytes of the tensors that a yardstick copies or fills: larger than any cache.
LARGE_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}


def environment(device: torch.device) -> dict[str, object]:
    """COLUMNS by name. `load` shows how busy the machine was."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "driver": _driver() if device.type == "cuda" else "",
        "threads": torch.get_num_threads(),
        "load": load(),
        "matmul_gflop_s": round(matmul_rate(device) / 1e9, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "triton": version("triton"),
        "pal_fast": pal_fast.__version__,
        "extension": _extension(),
    }


def load() -> float | str:
    """The system's load average of the last minute, or "" if it has none."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else ""


@lru_cache(maxsize=1)
def processor() -> str:
    """The CPU's model and its vector extensions, as reported by the system."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in lines.items()}
        name = fields.get("model name", name)
    return f"{name}, {os.cpu_count()} CPUs, {torch.backends.cpu.get_cpu_capability()}"


def version(package: str) -> str:
    """A package's version, or "" if it is not installed."""
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


@lru_cache(maxsize=8)
def matmul_rate(device: torch.device) -> float:
    """Operations per second of a float32 matrix product, the other roof of a roofline; measured once per process."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.rand(side, side, device=device) for _ in range(2))
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    seconds = [seconds_of(lambda: a @ b, device) for _ in range(7)]
    torch.backends.cuda.matmul.allow_tf32 = allowed
    return 2 * side**3 / sorted(seconds)[3]


def copy(device: torch.device, quick: bool = False) -> tuple[Callable[[], object], int]:
    """A copy between two large tensors, to be timed along with the peers, and the bytes that it moves."""
    source, target = _large(device, quick), _large(device, quick)
    return lambda: target.copy_(source), 2 * source.nbytes


def write(device: torch.device, quick: bool = False) -> tuple[Callable[[], object], int]:
    """A fill of a large tensor, the yardstick for operators that write and hardly read."""
    target = _large(device, quick)
    return lambda: target.fill_(1.0), target.nbytes


def _large(device: torch.device, quick: bool) -> torch.Tensor:
    """A large tensor of random values: zeros move faster."""
    return torch.rand(LARGE_BYTES[device.type] // 4 // (16 if quick else 1), device=device)


YARDSTICKS = {"copy": copy, "write": write}


if __name__ == "__main__":
    print(json.dumps(environment(torch.device("cuda" if torch.cuda.is_available() else "cpu"))))

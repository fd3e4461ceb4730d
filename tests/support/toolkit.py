"""Finds NVIDIA's tools on this machine, whatever their source."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path


def _package(name: str) -> Path | None:
    found = importlib.util.find_spec(name)
    return Path(found.origin).parent if found and found.origin else None


def cuda_headers() -> Path | None:
    """A directory with cuda_fp16.h: a toolkit's, or that of NVIDIA's package for the runtime."""
    candidates = [Path("/usr/local/cuda/include")]
    if home := os.environ.get("CUDA_HOME"):
        candidates.append(Path(home) / "include")
    if nvcc := shutil.which("nvcc"):
        candidates.append(Path(nvcc).resolve().parents[1] / "include")
    if torch := _package("torch"):
        candidates += sorted(torch.parent.glob("nvidia/*/include"))
    candidates += sorted(Path("/usr/local").glob("cuda-*/include"))
    if objects := os.environ.get("PAL_FAST_OBJECTS"):  # where a build keeps the compiler that it installed from PyPI
        candidates.append(Path(objects) / "nvcc/nvidia/cu13/include")
    return next((path for path in candidates if (path / "cuda_fp16.h").is_file()), None)


def cuobjdump() -> str | None:
    """CUDA's disassembler: from PATH, a toolkit, or Triton's package."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [Path(home) / "bin" for home in homes if home]
    if triton := _package("triton"):
        folders.append(triton / "backends/nvidia/bin")
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path=os.pathsep.join(map(str, folders)))

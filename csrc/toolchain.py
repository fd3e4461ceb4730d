"""The toolchain that setup.py builds with: the host compiler, the CUDA toolkit, and what each can compile."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

#: The way out without a compiler, for errors about compilers.
WITHOUT = (
    "PAL_FAST_EXTENSION=0 installs only the Python part: GPU tensors then go through Triton, "
    "CPU tensors through the slow reference"
)
COMPILERS = "The build needs a C++20 compiler, such as g++ 11 or clang 14 (CXX names another one)."

# One CUDA release for all five: unpinned, crt and nvvm resolve to a newer one, whose PTX ptxas rejects.
NVCC_FROM_PYPI = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-runtime==13.0.88",
    "nvidia-cuda-cccl==13.0.85",
]

#: The flags of *_sm90a.cu, which use features that only an H100 or H200 has. Their PTX, of no use to other GPUs, is
#: kept for tests/virtual_gpu.
ONLY_SM90A = ["-gencode=arch=compute_90a,code=[sm_90a,compute_90a]"]


def host_compiler() -> list[str]:
    """The C++ compiler's command: CXX, which may include arguments, or the system's.

    Raises: SystemExit if there is none.
    """
    command = shlex.split(os.environ.get("CXX", ""))
    if command and shutil.which(command[0]):
        return command
    if command:
        raise SystemExit(f"CXX={os.environ['CXX']!r} is not on PATH. {COMPILERS} {WITHOUT}")
    found = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if found is None:
        raise SystemExit(f"no C++ compiler (c++, g++, clang++) is on PATH. {COMPILERS} {WITHOUT}")
    return [found]


def other_gpu() -> str:
    """The kind of GPU that the installed PyTorch is built for, if it is not NVIDIA's; otherwise ""."""
    import torch

    kinds = {"hip": "ROCm", "xpu": "XPU"}
    return next((name for kind, name in kinds.items() if getattr(torch.version, kind, None)), "")


def find_cuda(mode: str, build_directory: Path) -> tuple[Path | None, str]:
    """The CUDA toolkit to build with, or None for a CPU-only extension and why.

    Args:
        mode: PAL_FAST_CUDA.
        build_directory: where a toolkit from PyPI is installed.

    Raises: SystemExit if the mode asks for CUDA kernels and they cannot be built.
    """
    if mode == "0":
        return None, "PAL_FAST_CUDA=0"
    wanted = mode != "auto"
    if not sys.platform.startswith("linux"):
        reason = "CUDA kernels are built on Linux only"
    elif not wanted and other_gpu():
        reason = f"this PyTorch is a {other_gpu()} build"
    elif mode == "pypi":
        return _cuda_from_pypi(build_directory / "nvcc"), ""
    elif (home := _installed_cuda()) is None:
        reason = "nvcc was found neither on PATH nor under CUDA_HOME"
    elif (version := nvcc_version(home)) < (12, 0):
        reason = f"nvcc {_text(version)} of {home} does not support C++20, which needs CUDA 12.0 or later"
    else:
        return home, ""
    if wanted:
        more = "; PAL_FAST_CUDA=pypi installs it from PyPI" if mode == "1" and sys.platform.startswith("linux") else ""
        raise SystemExit(f"PAL_FAST_CUDA={mode}, but {reason}{more}")
    return None, reason


def _cuda_from_pypi(directory: Path) -> Path:
    """Installs NVIDIA's compiler packages into `directory`, separate from those that PyTorch pins."""
    home = directory / "nvidia" / "cu13"
    if not (home / "bin" / "nvcc").exists():
        subprocess.check_call(
            [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(directory), *NVCC_FROM_PYPI]
        )
    return home


def _installed_cuda() -> Path | None:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        home = os.environ.get(variable)
        if home and (Path(home) / "bin" / "nvcc").exists():
            return Path(home)
    usual = Path("/usr/local/cuda/bin/nvcc")  # the default of NVIDIA's installer, on PATH or not
    nvcc = shutil.which("nvcc") or (str(usual) if usual.exists() else None)
    return _toolkit_of(nvcc) if nvcc else None


def _toolkit_of(nvcc: str) -> Path:
    """The toolkit's root as reported by nvcc (the one on PATH may be a wrapper)."""
    report = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", "probe.cu"], capture_output=True, text=True)
    for line in report.stderr.splitlines():
        if line.startswith("#$ TOP="):
            return Path(line.removeprefix("#$ TOP=").strip()).resolve()
    return Path(nvcc).resolve().parent.parent


def _asked(home: Path, option: str) -> str:
    return subprocess.run([str(home / "bin" / "nvcc"), option], capture_output=True, text=True, check=True).stdout


def nvcc_version(home: Path) -> tuple[int, int]:
    """(12, 4) for CUDA 12.4."""
    found = re.search(r"release (\d+)\.(\d+)", _asked(home, "--version"))
    if found is None:
        raise SystemExit(f"{home / 'bin' / 'nvcc'} --version names no release")
    return int(found[1]), int(found[2])


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def architectures_for(home: Path, wanted: str, chosen: bool) -> list[str]:
    """Those of `wanted`, separated by semicolons, that this nvcc can compile for, in ascending order.

    Args:
        chosen: whether the user chose `wanted`; then all of them must be supported.

    Raises: SystemExit for an invalid architecture, for a chosen one that is not supported, and if none is left.
    """
    listed = [part.strip() for part in wanted.split(";") if part.strip()]
    if not listed or not all(part.isdecimal() for part in listed):
        raise SystemExit(f'PAL_FAST_ARCHS must be whole numbers separated by semicolons, as "80;90", got {wanted!r}')
    known = set(re.findall(r"sm_(\d+)\b", _asked(home, "--list-gpu-code")))
    left_out = [part for part in listed if part not in known]
    made = sorted({part for part in listed if part in known}, key=int)
    if left_out:
        names = ", ".join(f"sm_{part}" for part in left_out)
        text = f"nvcc {_text(nvcc_version(home))} cannot compile for {names}"
        if chosen or not made:
            raise SystemExit(f"{text}, only for {', '.join(f'sm_{part}' for part in sorted(known, key=int))}")
        print(f"pal_fast: {text}: left out; newer GPUs take the PTX of sm_{made[-1]}", flush=True)
    return made


def code_generation(architectures: list[str]) -> list[str]:
    """nvcc's flags: machine code for every architecture, and PTX of the newest for future ones.

    The front end, half of the compile time, runs once for all architectures from 80 on: no kernel distinguishes them.
    """
    older, newer = [a for a in architectures if int(a) < 80], [a for a in architectures if int(a) >= 80]
    flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in older]
    if newer:
        flags.append(f"-gencode=arch=compute_{newer[0]},code=[{','.join(f'sm_{a}' for a in newer)}]")
    newest = architectures[-1]
    return [*flags, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


def built_for(architectures: list[str]) -> str:
    """What the extension reports about itself: its machine code, and the PTX for future GPUs."""
    return " ".join([*(f"sm_{a}" for a in architectures), "sm_90a", f"compute_{architectures[-1]}"])


def compression(home: Path) -> list[str]:
    """Every CUDA 13 driver reads the smallest form, a tenth of the uncompressed size; not every CUDA 12 driver does."""
    return ["--compress-mode=size"] if nvcc_version(home) >= (13, 0) else []


def cuda_includes(home: Path) -> list[str]:
    """The directories of CUDA's headers; conda's toolkit has them under targets/."""
    folders = ("include", "include/cccl", "targets/x86_64-linux/include", "targets/sbsa-linux/include")
    return [str(home / folder) for folder in folders if (home / folder).is_dir()]


def static_runtime(home: Path) -> str:
    """CUDA's static runtime library, to be linked into the extension. Raises: SystemExit if the toolkit has none."""
    folders = [home / part for part in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib")]
    folders += [Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib/aarch64-linux-gnu")]  # Debian's packages
    found = next((folder for folder in folders if (folder / "libcudart_static.a").exists()), None)
    if found is None:
        raise SystemExit(
            f"the CUDA toolkit in {home} has no libcudart_static.a (conda: cuda-cudart-static); "
            "PAL_FAST_CUDA=pypi installs a complete one from PyPI, PAL_FAST_CUDA=0 leaves the CUDA kernels out"
        )
    return str(found / "libcudart_static.a")

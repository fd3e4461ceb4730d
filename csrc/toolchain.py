"""What setup.py builds with: the host's compiler, CUDA's, and what each of them can make."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

#: How to go on without a compiler; part of every error that says that none will do.
WITHOUT = (
    "PAL_FAST_EXTENSION=0 installs the Python part alone: GPU tensors then go through Triton, "
    "CPU tensors through the slow reference"
)
COMPILERS = "The build needs a C++20 compiler, such as g++ 11 or clang 14 (CXX names another one)."

# One CUDA release for all five: left alone, crt and nvvm resolve to a newer one whose PTX ptxas refuses.
NVCC_FROM_PYPI = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-runtime==13.0.88",
    "nvidia-cuda-cccl==13.0.85",
]

#: The flags of *_sm90a.cu, which uses what only an H100 or H200 has. Its PTX, which serves no other GPU, is kept for
#: tests/virtual_gpu.
ONLY_SM90A = ["-gencode=arch=compute_90a,code=[sm_90a,compute_90a]"]


def host_compiler() -> list[str]:
    """The C++ compiler's command: CXX, which may hold arguments, or what the system has.

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
    """The kind of GPU that the PyTorch beside which is built serves, if it is not NVIDIA's; "" if it is, or none."""
    import torch

    kinds = {"hip": "ROCm", "xpu": "XPU"}
    return next((name for kind, name in kinds.items() if getattr(torch.version, kind, None)), "")


def find_cuda(mode: str, build_directory: Path) -> tuple[Path | None, str]:
    """The CUDA toolkit to build with, or None for a CPU-only extension and why.

    Args:
        mode: PAL_FAST_CUDA.
        build_directory: where a toolkit from PyPI is kept.

    Raises: SystemExit if the mode asks for CUDA kernels, and they cannot be built.
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
        reason = f"nvcc {_text(version)} of {home} has no C++20, as that of CUDA 12.0 and later does"
    else:
        return home, ""
    if wanted:
        more = "; PAL_FAST_CUDA=pypi brings it from PyPI" if mode == "1" and sys.platform.startswith("linux") else ""
        raise SystemExit(f"PAL_FAST_CUDA={mode}, but {reason}{more}")
    return None, reason


def _cuda_from_pypi(directory: Path) -> Path:
    """Installs NVIDIA's compiler packages into `directory`, apart from those that PyTorch pins."""
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
    usual = Path("/usr/local/cuda/bin/nvcc")  # where NVIDIA's installer leaves it, on PATH or not
    nvcc = shutil.which("nvcc") or (str(usual) if usual.exists() else None)
    return _toolkit_of(nvcc) if nvcc else None


def _toolkit_of(nvcc: str) -> Path:
    """The toolkit's root, as nvcc itself reports it (the nvcc on PATH may be a wrapper)."""
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
    """Those of `wanted`, separated by semicolons, that this nvcc makes code for, in ascending order.

    Args: chosen: by the user, whose choice is not cut down.

    Raises: SystemExit for what is no architecture, for one that was chosen and cannot be had, and if none is left.
    """
    listed = [part.strip() for part in wanted.split(";") if part.strip()]
    if not listed or not all(part.isdecimal() for part in listed):
        raise SystemExit(f'PAL_FAST_ARCHS must be whole numbers separated by semicolons, as "80;90", got {wanted!r}')
    known = set(re.findall(r"sm_(\d+)\b", _asked(home, "--list-gpu-code")))
    left_out = [part for part in listed if part not in known]
    made = sorted({part for part in listed if part in known}, key=int)
    if left_out:
        names = ", ".join(f"sm_{part}" for part in left_out)
        text = f"nvcc {_text(nvcc_version(home))} makes no code for {names}"
        if chosen or not made:
            raise SystemExit(f"{text}, only for {', '.join(f'sm_{part}' for part in sorted(known, key=int))}")
        print(f"pal_fast: {text}: left out; newer GPUs take the PTX of sm_{made[-1]}", flush=True)
    return made


def code_generation(architectures: list[str]) -> list[str]:
    """nvcc's flags: machine code for every architecture, and PTX of the newest for those to come.

    The front end, half of the time, runs once for the architectures from 80 on, which no kernel tells apart.
    """
    older, newer = [a for a in architectures if int(a) < 80], [a for a in architectures if int(a) >= 80]
    flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in older]
    if newer:
        flags.append(f"-gencode=arch=compute_{newer[0]},code=[{','.join(f'sm_{a}' for a in newer)}]")
    newest = architectures[-1]
    return [*flags, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


def built_for(architectures: list[str]) -> str:
    """What the extension says that it holds: the machine code, and the PTX for GPUs to come."""
    return " ".join([*(f"sm_{a}" for a in architectures), "sm_90a", f"compute_{architectures[-1]}"])


def compression(home: Path) -> list[str]:
    """Every driver of CUDA 13 reads the smallest form, a tenth of the plain one; not every driver of CUDA 12 does."""
    return ["--compress-mode=size"] if nvcc_version(home) >= (13, 0) else []


def cuda_includes(home: Path) -> list[str]:
    """Where CUDA's headers lie; conda's toolkit has them under targets/."""
    folders = ("include", "include/cccl", "targets/x86_64-linux/include", "targets/sbsa-linux/include")
    return [str(home / folder) for folder in folders if (home / folder).is_dir()]


def static_runtime(home: Path) -> str:
    """CUDA's runtime, to be linked into the extension. Raises: SystemExit if the toolkit has none."""
    folders = [home / part for part in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib")]
    folders += [Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib/aarch64-linux-gnu")]  # of Debian's packages
    found = next((folder for folder in folders if (folder / "libcudart_static.a").exists()), None)
    if found is None:
        raise SystemExit(
            f"the CUDA toolkit in {home} has no libcudart_static.a (conda: cuda-cudart-static); "
            "PAL_FAST_CUDA=pypi brings a whole one from PyPI, PAL_FAST_CUDA=0 leaves the CUDA kernels out"
        )
    return str(found / "libcudart_static.a")

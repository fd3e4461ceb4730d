"""The build: one abi3 extension, `pal_fast._C`, against PyTorch's stable ABI and Python's limited API.

Environment variables (README, "Install"):
    PAL_FAST_CUDA       auto (default: CUDA kernels if nvcc is found), 1 (fails without nvcc), 0 (CPU only),
                        pypi (installs nvcc from PyPI for this build)
    PAL_FAST_ARCHS      semicolon-separated architectures, default those of "75;80;86;89;90;100;120" that nvcc knows,
                        plus PTX of the last
    PAL_FAST_EXTENSION  1 (default), 0 (only the Python part, without a compiler; always so on Windows)
    PAL_FAST_CUDART     a library to link in place of CUDA's static runtime (tests/virtual_gpu)
    PAL_FAST_SANITIZE   e.g. "address,undefined": a debug build of the CPU part
    PAL_FAST_OBJECTS    where object files are cached between builds, default the build directory; each is recompiled
                        when its sources, headers, flags or PyTorch's version change
    MAX_JOBS            number of parallel compilers, default the number of cores
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools
from setuptools import Distribution, Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

#: pip provides a setuptools that reads pyproject.toml (build-system). `setup.py build_ext` uses the installed one, and
#: an older one, which may lack bdist_wheel, too, suffices for the extension.
ONLY_EXTENSION = int(setuptools.__version__.split(".")[0]) < 77 and "build_ext" in sys.argv
if not ONLY_EXTENSION:
    from setuptools.command.bdist_wheel import bdist_wheel

ROOT = Path(__file__).parent.resolve()
CSRC = ROOT / "csrc"
sys.path.insert(0, str(CSRC))
import objects  # noqa: E402
import toolchain  # noqa: E402

TORCH_STABLE_VERSION = "0x020a000000000000"  # 2.10, the oldest PyTorch that the wheel supports
PYTHON_LIMITED_API = "0x030a0000"  # 3.10
CUDA_MODE = os.environ.get("PAL_FAST_CUDA", "auto").lower()
if CUDA_MODE not in {"auto", "0", "1", "pypi"}:
    raise SystemExit(f"PAL_FAST_CUDA must be auto, 0, 1 or pypi, not {CUDA_MODE!r}")
ARCHITECTURES = os.environ.get("PAL_FAST_ARCHS", "75;80;86;89;90;100;120")
SANITIZE = os.environ.get("PAL_FAST_SANITIZE", "")
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
#: The CPU kernels are written in the vector extensions of g++ and clang, which Windows' own compiler does not have.
WITH_EXTENSION = os.environ.get("PAL_FAST_EXTENSION", "1") != "0" and sys.platform != "win32"


def source_digest() -> str:
    """A digest of csrc/, by which a source tree detects a stale extension (pal_fast/_extension.py)."""
    digest = hashlib.sha256()
    for path in sorted(p for p in CSRC.rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"}):
        digest.update(path.relative_to(CSRC).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def common_flags(cuda_home: Path | None) -> list[str]:
    """What the host compiler and nvcc are both given: definitions, include paths and the language."""
    import torch.utils.cpp_extension as torch_build

    definitions = [f"TORCH_TARGET_VERSION={TORCH_STABLE_VERSION}", f'PAL_FAST_SOURCE_DIGEST="{source_digest()}"']
    # The operators use headers that only PyTorch provides; CUDA's own come after them.
    include = [str(CSRC), *torch_build.include_paths()]
    if cuda_home:
        definitions += ["PAL_FAST_WITH_CUDA=1", "USE_CUDA=1"]
        include += toolchain.cuda_includes(cuda_home)
    headers = Path(sysconfig.get_paths()["include"])
    if sys.platform.startswith("linux") and not FREE_THREADED and (headers / "Python.h").is_file():
        definitions.append(f"Py_LIMITED_API={PYTHON_LIMITED_API}")
        include.append(str(headers))
    return [*(f"-D{d}" for d in definitions), *(f"-I{i}" for i in include), "-std=c++20"]


def host_command(compiler: list[str], common: list[str], architectures: list[str]) -> list[str]:
    """The command that compiles a .cpp file."""
    import torch.utils.cpp_extension as torch_build

    command = [*compiler, "-c", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
    command += ["-Wno-unknown-pragmas", "-Wno-unused-parameter", "-O3", *common]
    # Errors name files as csrc/... and torch/..., and builds are reproducible whatever the directory.
    command += [f"-ffile-prefix-map={folder}/=" for folder in (ROOT, *torch_build.include_paths())]
    if SANITIZE:
        command += ["-O1", "-g", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"]
    if architectures:
        command.append(f'-DPAL_FAST_CUDA_ARCHITECTURES="{toolchain.built_for(architectures)}"')
    return command


def device_command(cuda_home: Path, common: list[str]) -> list[str]:
    """The command that compiles a .cu file, without the architectures."""
    command = [str(cuda_home / "bin" / "nvcc"), "-c", "-O3", "-cudart", "static", "-Xptxas", "-v"]
    command += ["-Xcompiler", "-fPIC,-fvisibility=hidden", "--expt-relaxed-constexpr", *common]
    return [*command, *toolchain.compression(cuda_home)]


def link_command(compiler: list[str], compiled: list[str], output: Path, cuda_home: Path | None) -> list[str]:
    """The command that links the object files into the extension."""
    import torch.utils.cpp_extension as torch_build

    command = [*compiler, "-shared"]
    if sys.platform != "darwin":  # whose linker has neither
        command += ["-Wl,--as-needed", *([] if SANITIZE else ["-s"])]
    command += [f"-fsanitize={SANITIZE}"] if SANITIZE else []
    command += [*compiled, "-o", str(output), *(f"-L{path}" for path in torch_build.library_paths()), "-ltorch_cpu"]
    if cuda_home:
        runtime = os.environ.get("PAL_FAST_CUDART") or toolchain.static_runtime(cuda_home)
        command += [runtime, "-ldl", "-lpthread", "-lrt"]
    return command


class BuildExtension(build_ext):
    """Compiles .cpp with the host compiler and .cu with nvcc, several files in parallel, and links them."""

    def build_extension(self, ext: Extension) -> None:
        if not (CSRC / "module.cpp").is_file():
            raise SystemExit(f"{CSRC} holds no sources: is this a complete sdist or checkout?")
        directory = Path(os.environ.get("PAL_FAST_OBJECTS") or self.build_temp).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        compiler = toolchain.host_compiler()
        cuda_home, why_not = (None, "a sanitized build") if SANITIZE else toolchain.find_cuda(CUDA_MODE, directory)
        architectures: list[str] = []
        if cuda_home:
            architectures = toolchain.architectures_for(cuda_home, ARCHITECTURES, "PAL_FAST_ARCHS" in os.environ)

        common = common_flags(cuda_home)
        host = host_command(compiler, common, architectures)
        jobs: list[objects.Job] = [(path, host) for path in [*CSRC.glob("*.cpp"), *(CSRC / "cpu").rglob("*.cpp")]]
        if cuda_home:
            device = device_command(cuda_home, common)
            jobs += [(path, host) for path in (CSRC / "cuda").rglob("*.cpp")]
            for path in (CSRC / "cuda").rglob("*.cu"):
                only_sm90a = path.stem.endswith("_sm90a")
                generated = toolchain.ONLY_SM90A if only_sm90a else toolchain.code_generation(architectures)
                jobs.append((path, [*device, *generated]))
        compiled = objects.compile_all(jobs, directory)

        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        subprocess.check_call(link_command(compiler, compiled, output, cuda_home))
        kind = f"with CUDA kernels for sm_{', sm_'.join(architectures)}" if cuda_home else f"CPU only ({why_not})"
        print(f"pal_fast: built {output.name} {kind}", flush=True)

    def get_ext_filename(self, fullname: str) -> str:
        """The same file name for every Python, by which pal_fast/_extension.py finds it."""
        return os.path.join(*fullname.split(".")) + ".abi3.so"


class NoMetadata(Distribution):
    """A distribution whose pyproject.toml is not read."""

    def parse_config_files(self, *_: object, **__: object) -> None:
        pass


if ONLY_EXTENSION:
    settings = {"distclass": NoMetadata, "cmdclass": {"build_ext": BuildExtension}}
else:

    class Abi3Wheel(bdist_wheel):
        """Tags the wheel cp310-abi3 for every Python from 3.10. Free-threaded ones refuse such a wheel."""

        def get_tag(self) -> tuple[str, str, str]:
            *python, platform = super().get_tag()
            if not WITH_EXTENSION:
                return *python, platform
            if FREE_THREADED:
                return "py3", "none", platform
            return "cp310", "abi3", platform

    settings = {"cmdclass": {"build_ext": BuildExtension, "bdist_wheel": Abi3Wheel}}

setup(
    # The Triton kernels and the benchmarks are next to the package and are installed inside it (pyproject.toml,
    # package-dir).
    packages=[
        *find_packages(include=["pal_fast", "pal_fast.*"]),
        "pal_fast.kernels",
        *(f"pal_fast.{name}" for name in find_packages(include=["benchmarks", "benchmarks.*"])),
    ],
    ext_modules=[Extension("pal_fast._C", sources=[])] if WITH_EXTENSION else [],
    setup_requires=["pip"] if CUDA_MODE == "pypi" else [],
    **settings,
)

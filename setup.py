"""The build: one abi3 extension, `pal_fast._C`, against PyTorch's stable ABI and Python's limited API.

Environment variables (README, "Install"):
    PAL_FAST_CUDA       auto (default: CUDA kernels if nvcc is found), 1 (fails without nvcc), 0 (CPU only),
                        pypi (installs nvcc from PyPI for this build)
    PAL_FAST_ARCHS      semicolon-separated architectures, default "75;80;86;89;90;100;120", plus PTX of the last
    PAL_FAST_CUDART     a library to link in place of CUDA's static runtime (tests/virtual_gpu)
    PAL_FAST_SANITIZE   e.g. "address,undefined": a debug build of the CPU part
    PAL_FAST_OBJECTS    where object files are cached between builds, default the build directory; each is recompiled
                        when its sources, headers, flags or PyTorch's version change
    MAX_JOBS            number of parallel compilers, default the number of cores
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
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
TORCH_STABLE_VERSION = "0x020a000000000000"  # 2.10, the oldest PyTorch that the wheel supports
PYTHON_LIMITED_API = "0x030a0000"  # 3.10
CUDA_MODE = os.environ.get("PAL_FAST_CUDA", "auto").lower()
ARCHITECTURES = os.environ.get("PAL_FAST_ARCHS", "75;80;86;89;90;100;120").split(";")
SANITIZE = os.environ.get("PAL_FAST_SANITIZE", "")

# One CUDA release for all five: unpinned, crt and nvvm resolve to a newer one, whose PTX ptxas rejects.
NVCC_FROM_PYPI = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-runtime==13.0.88",
    "nvidia-cuda-cccl==13.0.85",
]


def source_digest() -> str:
    """A digest of csrc/, by which a source tree detects a stale extension (pal_fast/_extension.py)."""
    digest = hashlib.sha256()
    for path in sorted(p for p in CSRC.rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"}):
        digest.update(path.relative_to(CSRC).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def headers_of(source: Path) -> set[Path]:
    """The files of csrc/ that a source includes, directly or indirectly."""
    found: set[Path] = set()
    left = [source]
    while left:
        path = left.pop()
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.MULTILINE):
            header = next((h for h in ((path.parent / name).resolve(), CSRC / name) if h.is_file()), None)
            if header and header not in found:
                found.add(header)
                left.append(header)
    return found


def object_key(source: Path, command: list[str]) -> str:
    """A digest of everything an object file depends on, so that a second build compiles only what changed.

    `command` excludes the source's own path: only its content counts. Instead of include paths, PyTorch's version
    counts, since build isolation changes the paths; macros that name the build count only in sources that use them.
    """
    import torch

    digest = hashlib.sha256(torch.__version__.encode())
    text = source.read_text()
    names = [f"-D{name}" for name in ("PAL_FAST_SOURCE_DIGEST", "PAL_FAST_CUDA_ARCHITECTURES") if name not in text]
    flags = [part for part in command if not part.startswith(("-I", "-ffile-prefix-map", *names))]
    digest.update(" ".join(flags).encode())
    for path in [source, *sorted(headers_of(source))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


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


#: The flags of *_sm90a.cu, which use features that only an H100 or H200 has. Their PTX, of no use to other GPUs, is
#: kept for tests/virtual_gpu.
ONLY_SM90A = ["-gencode=arch=compute_90a,code=[sm_90a,compute_90a]"]


def built_for(architectures: list[str]) -> str:
    """What the extension reports about itself: its machine code, and the PTX for future GPUs."""
    return " ".join([*(f"sm_{a}" for a in architectures), "sm_90a", f"compute_{architectures[-1]}"])


def cuda_home_from_pypi(directory: Path) -> Path:
    """Installs NVIDIA's compiler packages into `directory`, separate from those that PyTorch pins."""
    home = directory / "nvidia" / "cu13"
    if not (home / "bin" / "nvcc").exists():
        subprocess.check_call(
            [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(directory), *NVCC_FROM_PYPI]
        )
    return home


def find_cuda_home(build_directory: Path) -> Path | None:
    """The CUDA toolkit to build with, or None for a CPU-only extension."""
    if CUDA_MODE not in {"auto", "0", "1", "pypi"}:
        raise SystemExit(f"PAL_FAST_CUDA must be auto, 0, 1 or pypi, not {CUDA_MODE!r}")
    if CUDA_MODE == "0" or SANITIZE or not sys.platform.startswith("linux"):
        return None
    if CUDA_MODE == "pypi":
        return cuda_home_from_pypi(build_directory / "nvcc")
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        home = os.environ.get(variable)
        if home and (Path(home) / "bin" / "nvcc").exists():
            return Path(home)
    usual = Path("/usr/local/cuda/bin/nvcc")  # the default of NVIDIA's installer, on PATH or not
    nvcc = shutil.which("nvcc") or (str(usual) if usual.exists() else None)
    if nvcc:
        return toolkit_of(nvcc)
    if CUDA_MODE == "1":
        raise SystemExit(
            "PAL_FAST_CUDA=1, but nvcc was found neither on PATH nor under CUDA_HOME; "
            "PAL_FAST_CUDA=pypi installs it from PyPI"
        )
    return None


def toolkit_of(nvcc: str) -> Path:
    """The toolkit's root as reported by nvcc (the one on PATH may be a wrapper)."""
    report = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", "probe.cu"], capture_output=True, text=True)
    for line in report.stderr.splitlines():
        if line.startswith("#$ TOP="):
            return Path(line.removeprefix("#$ TOP=").strip()).resolve()
    return Path(nvcc).resolve().parent.parent


def static_runtime(cuda_home: Path) -> str:
    """CUDA's static runtime library, to be linked into the extension."""
    directories = ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib")
    found = (cuda_home / directory / "libcudart_static.a" for directory in directories)
    return str(next(path for path in found if path.exists()))


class BuildExtension(build_ext):
    """Compiles .cpp with the host compiler and .cu with nvcc, several files in parallel, and links them."""

    def build_extension(self, ext: Extension) -> None:
        import torch.utils.cpp_extension as torch_build

        objects = Path(os.environ.get("PAL_FAST_OBJECTS") or self.build_temp).resolve()
        objects.mkdir(parents=True, exist_ok=True)
        cuda_home = find_cuda_home(objects)
        # The operators use headers that only PyTorch provides; CUDA's own come after them.
        include = [str(CSRC), *torch_build.include_paths()]
        definitions = [
            f"TORCH_TARGET_VERSION={TORCH_STABLE_VERSION}",
            f"Py_LIMITED_API={PYTHON_LIMITED_API}",
            f'PAL_FAST_SOURCE_DIGEST="{source_digest()}"',
        ]
        if cuda_home:
            definitions += ["PAL_FAST_WITH_CUDA=1", "USE_CUDA=1"]
            include.append(str(cuda_home / "include"))
            cccl = cuda_home / "include" / "cccl"
            if cccl.is_dir():
                include.append(str(cccl))
        common = [f"-D{d}" for d in definitions] + [f"-I{i}" for i in include]
        common += [f"-I{self.python_include()}", "-std=c++20"]

        host = [os.environ.get("CXX", "c++"), "-c", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
        host += ["-Wno-unknown-pragmas", "-Wno-unused-parameter", "-O3", *common]
        # Errors name files as csrc/... and torch/..., and builds are reproducible whatever the directory.
        host += [f"-ffile-prefix-map={folder}/=" for folder in (ROOT, *torch_build.include_paths())]
        if SANITIZE:
            host += ["-O1", "-g", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZE}"]
            host += ["-fno-sanitize-recover=all"]
        link = [os.environ.get("CXX", "c++"), "-shared", "-Wl,--as-needed" if sys.platform != "darwin" else ""]
        if not (CSRC / "module.cpp").is_file():
            raise SystemExit(f"{CSRC} holds no sources: is this a complete sdist or checkout?")
        jobs: list[tuple[Path, list[str]]] = []
        if cuda_home:
            device = [str(cuda_home / "bin" / "nvcc"), "-c", "-O3", "-cudart", "static", "-Xptxas", "-v"]
            device += ["-Xcompiler", "-fPIC,-fvisibility=hidden", "--expt-relaxed-constexpr", *common]
            # Every CUDA 13 driver reads the smallest form, a tenth of the uncompressed size.
            device.append("--compress-mode=size")
            host.append(f'-DPAL_FAST_CUDA_ARCHITECTURES="{built_for(ARCHITECTURES)}"')
            jobs += [(path, host) for path in sorted((CSRC / "cuda").rglob("*.cpp"))]
            for path in sorted((CSRC / "cuda").rglob("*.cu")):
                of_path = ONLY_SM90A if path.stem.endswith("_sm90a") else code_generation(ARCHITECTURES)
                jobs.append((path, [*device, *of_path]))
            libraries = [os.environ.get("PAL_FAST_CUDART") or static_runtime(cuda_home), "-ldl", "-lpthread", "-lrt"]
        else:
            libraries = []
        jobs += [(path, host) for path in sorted(CSRC.glob("*.cpp"))]
        jobs += [(path, host) for path in sorted((CSRC / "cpu").rglob("*.cpp"))]

        def compile_one(job: tuple[Path, list[str]]) -> str:
            source, command = job
            target = objects / (source.relative_to(CSRC).as_posix().replace("/", "_") + ".o")
            stamp, key = target.with_suffix(".key"), object_key(source, command)
            if target.exists() and stamp.exists() and stamp.read_text() == key:
                return str(target)
            print("compiling", source.relative_to(ROOT), flush=True)
            stamp.unlink(missing_ok=True)
            done = subprocess.run([*command, str(source), "-o", str(target)], capture_output=True, text=True)
            target.with_suffix(".log").write_text(done.stdout + done.stderr)
            if done.returncode:
                raise SystemExit(f"{' '.join(done.args)}\n{done.stdout}{done.stderr}")
            stamp.write_text(key)
            return str(target)

        # The slowest first, so that the last job to run is a short one.
        def size(source: Path) -> int:
            return sum(path.stat().st_size for path in (source, *headers_of(source)))

        jobs.sort(key=lambda job: (job[0].suffix != ".cu", -size(job[0])))
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
            compiled = list(pool.map(compile_one, jobs))

        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        link += [f"-fsanitize={SANITIZE}"] if SANITIZE else ["-s"]
        library_paths = [f"-L{path}" for path in torch_build.library_paths()]
        command = [*link, *compiled, "-o", str(output), *library_paths, "-ltorch_cpu", *libraries]
        subprocess.check_call([part for part in command if part])
        kind = f"with CUDA kernels for sm_{', sm_'.join(ARCHITECTURES)}" if cuda_home else "CPU only (no nvcc)"
        print(f"pal_fast: built {output.name} {kind}", flush=True)

    @staticmethod
    def python_include() -> str:
        import sysconfig

        return sysconfig.get_paths()["include"]


class NoMetadata(Distribution):
    """A distribution whose pyproject.toml is not read."""

    def parse_config_files(self, *_: object, **__: object) -> None:
        pass


if ONLY_EXTENSION:
    settings = {"distclass": NoMetadata, "cmdclass": {"build_ext": BuildExtension}}
else:

    class Abi3Wheel(bdist_wheel):
        """Tags the wheel cp310-abi3: one wheel for every Python from 3.10."""

        def get_tag(self) -> tuple[str, str, str]:
            _, _, platform = super().get_tag()
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
    ext_modules=[Extension("pal_fast._C", sources=[], py_limited_api=True)],
    setup_requires=["pip"] if CUDA_MODE == "pypi" else [],
    **settings,
)

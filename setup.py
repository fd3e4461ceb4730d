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
import re
import subprocess
import sys
import sysconfig
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
sys.path.insert(0, str(CSRC))
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


class BuildExtension(build_ext):
    """Compiles .cpp with the host compiler and .cu with nvcc, several files in parallel, and links them."""

    def build_extension(self, ext: Extension) -> None:
        import torch.utils.cpp_extension as torch_build

        objects = Path(os.environ.get("PAL_FAST_OBJECTS") or self.build_temp).resolve()
        objects.mkdir(parents=True, exist_ok=True)
        compiler = toolchain.host_compiler()
        cuda_home, why_not_cuda = (None, "a sanitized build") if SANITIZE else toolchain.find_cuda(CUDA_MODE, objects)
        architectures: list[str] = []
        # The operators use headers that only PyTorch provides; CUDA's own come after them.
        include = [str(CSRC), *torch_build.include_paths()]
        definitions = [
            f"TORCH_TARGET_VERSION={TORCH_STABLE_VERSION}",
            f'PAL_FAST_SOURCE_DIGEST="{source_digest()}"',
        ]
        if cuda_home:
            chosen = "PAL_FAST_ARCHS" in os.environ
            architectures = toolchain.architectures_for(cuda_home, ARCHITECTURES, chosen)
            definitions += ["PAL_FAST_WITH_CUDA=1", "USE_CUDA=1"]
            include += toolchain.cuda_includes(cuda_home)
        headers = Path(sysconfig.get_paths()["include"])
        if sys.platform.startswith("linux") and not FREE_THREADED and (headers / "Python.h").is_file():
            definitions.append(f"Py_LIMITED_API={PYTHON_LIMITED_API}")
            include.append(str(headers))
        common = [*(f"-D{d}" for d in definitions), *(f"-I{i}" for i in include), "-std=c++20"]

        host = [*compiler, "-c", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
        host += ["-Wno-unknown-pragmas", "-Wno-unused-parameter", "-O3", *common]
        # Errors name files as csrc/... and torch/..., and builds are reproducible whatever the directory.
        host += [f"-ffile-prefix-map={folder}/=" for folder in (ROOT, *torch_build.include_paths())]
        if SANITIZE:
            host += ["-O1", "-g", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZE}"]
            host += ["-fno-sanitize-recover=all"]
        link = [*compiler, "-shared"]
        if sys.platform != "darwin":  # whose linker has neither
            link += ["-Wl,--as-needed", *([] if SANITIZE else ["-s"])]
        if not (CSRC / "module.cpp").is_file():
            raise SystemExit(f"{CSRC} holds no sources: is this a complete sdist or checkout?")
        jobs: list[tuple[Path, list[str]]] = []
        if cuda_home:
            device = [str(cuda_home / "bin" / "nvcc"), "-c", "-O3", "-cudart", "static", "-Xptxas", "-v"]
            device += ["-Xcompiler", "-fPIC,-fvisibility=hidden", "--expt-relaxed-constexpr", *common]
            device += toolchain.compression(cuda_home)
            host.append(f'-DPAL_FAST_CUDA_ARCHITECTURES="{toolchain.built_for(architectures)}"')
            jobs += [(path, host) for path in sorted((CSRC / "cuda").rglob("*.cpp"))]
            for path in sorted((CSRC / "cuda").rglob("*.cu")):
                sm90a = path.stem.endswith("_sm90a")
                of_path = toolchain.ONLY_SM90A if sm90a else toolchain.code_generation(architectures)
                jobs.append((path, [*device, *of_path]))
            runtime = os.environ.get("PAL_FAST_CUDART") or toolchain.static_runtime(cuda_home)
            libraries = [runtime, "-ldl", "-lpthread", "-lrt"]
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
                raise SystemExit(f"{' '.join(done.args)}\n{done.stdout}{done.stderr}\n{toolchain.COMPILERS}")
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
        link += [f"-fsanitize={SANITIZE}"] if SANITIZE else []
        library_paths = [f"-L{path}" for path in torch_build.library_paths()]
        command = [*link, *compiled, "-o", str(output), *library_paths, "-ltorch_cpu", *libraries]
        subprocess.check_call(command)
        kind = f"with CUDA kernels for sm_{', sm_'.join(architectures)}" if cuda_home else f"CPU only ({why_not_cuda})"
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

"""Builds the virtual GPU: in tests/, `python -m virtual_gpu.build DIRECTORY`, with PyTorch and nvcc installed.

DIRECTORY then holds libtorch_cuda.so, which executes PTX; the extension, linked from the wheel's object files against
it instead of CUDA's runtime; and the extension's PTX.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.toolkit import cuda_headers, cuobjdump

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LIBRARY, PTX, EXTENSION = "libtorch_cuda.so", "extension.ptx", "_C.abi3.so"
SOURCES = (
    *("program", "instructions", "arithmetic", "comparison", "conversion", "memory_access", "warp", "warpgroup"),
    *("memory", "traffic", "machine", "runtime"),
)
# No contraction and no reordering: each instruction rounds as PTX says.
FLAGS = ("-std=c++20", "-O2", "-march=native", "-ffp-contract=off", "-frounding-math", "-fPIC", "-Wall", "-Wextra")


def build_library(directory: Path) -> Path:
    """libtorch_cuda.so, the name under which the extension looks up PyTorch's current stream."""
    compiler = os.environ.get("CXX", "c++")
    jobs = [
        subprocess.Popen(
            [compiler, *FLAGS, f"-I{cuda_headers()}", "-c", HERE / f"{name}.cpp", "-o", directory / f"{name}.o"]
        )
        for name in SOURCES
    ]
    if any([job.wait() for job in jobs]):
        raise SystemExit("the virtual GPU does not compile")
    library = directory / LIBRARY
    objects = [directory / f"{name}.o" for name in SOURCES]
    subprocess.run([compiler, "-shared", f"-Wl,-soname,{LIBRARY}", *objects, "-o", library], check=True)
    return library


def build_extension(directory: Path, library: Path) -> Path:
    """The extension, linked against the virtual GPU as its CUDA runtime."""
    environment = os.environ | {"PAL_FAST_CUDART": str(library)}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(directory / "build")]
    if "PAL_FAST_OBJECTS" not in os.environ:
        command += ["--build-temp", str(directory / "objects")]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return (directory / "build/pal_fast" / EXTENSION).replace(directory / EXTENSION)


def main(directory: Path) -> None:
    """Builds the library, the extension and its PTX."""
    directory.mkdir(parents=True, exist_ok=True)
    extension = build_extension(directory, build_library(directory))
    disassembler = cuobjdump()
    if disassembler is None:
        raise SystemExit("the extension's PTX is read by cuobjdump, of a toolkit or of Triton, and there is none")
    done = subprocess.run([disassembler, "-ptx", str(extension)], capture_output=True, text=True, check=True)
    if ".entry" not in done.stdout:
        raise SystemExit(f"{extension} holds no PTX: {done.stderr}")
    (directory / PTX).write_text(done.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())

"""Compiles for an H100, without a GPU, exactly the kernels that the host code launches for given tensors.

The interpreter runs Python: it accepts variables that change type in a loop, and other code that triton's compiler
rejects. So launches are intercepted here, their arguments specialised as triton does, and kernels compiled to cubins.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch

#: Multiprocessors of an H100, for the host code that plans a launch.
PROCESSORS = 132

_TYPES = {
    torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16",
    torch.int32: "i32", torch.bool: "i1",
}  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """One kernel compiled for sm_90, and ptxas's report on it."""

    name: str
    grid: int
    ptx: str
    registers: int
    spilled_bytes: int


def ptxas() -> Path:
    """The assembler from triton's package."""
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"


@lru_cache(maxsize=1)
def why_no_ptxas() -> str:
    """Why the assembler cannot run; "" if it can."""
    try:
        subprocess.run([str(ptxas()), "--version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"triton's ptxas cannot run: {error}"
    return ""


def specialise(kernel: Any, arguments: dict[str, Any]) -> tuple[dict[str, str], dict[Any, Any], dict[Any, Any]]:
    """Signature, constants and attributes of a launch, as triton's JIT derives them."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        plain = parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1 and not plain):
            signature[parameter.name], constants[(index,)] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = f"*{_TYPES[value.dtype]}"
            aligned = True  # PyTorch's allocator aligns to 512 bytes on a GPU
        elif type(value) is int:
            signature[parameter.name] = "i32" if value < 2**31 else "i64"
            aligned = value % 16 == 0 and not plain
        else:
            assert type(value) is float, f"{parameter.name} is {value!r}"
            signature[parameter.name] = "fp32"
            aligned = False
        if aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def assembly(
    kernel: Any, arguments: dict[str, Any], options: dict[str, Any], backend: str, architecture: int | str, warp: int
) -> Any:
    """The launch compiled by triton, by the name of each stage."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = specialise(kernel, arguments)
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget(backend, architecture, warp), options=options).asm


def compile_launch(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], options: dict[str, Any]) -> Compiled:
    ptx = assembly(kernel, arguments, options, "cuda", 90, 32)["ptx"]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [str(ptxas()), "-v", "--gpu-name=sm_90a", file.name, "-o", "/dev/null"]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    used, spilled = re.search(r"Used (\d+) registers", done.stderr), re.search(r"(\d+) bytes spill stores", done.stderr)
    assert used is not None, done.stderr
    assert spilled is not None, done.stderr
    return Compiled(kernel.__name__, grid[0], ptx, int(used[1]), int(spilled[1]))


@contextmanager
def compiling() -> Iterator[list[Compiled]]:
    """Launches inside compile and do not run; each appends its kernel to the list."""
    compiled: list[Compiled] = []
    with _launches_go_to(lambda *launch: compiled.append(compile_launch(*launch))):
        yield compiled


@contextmanager
def compiling_for_rocm(architecture: str) -> Iterator[list[str]]:
    """Launches inside compile to machine code for an AMD GPU; each appends its kernel's name to the list."""
    compiled: list[str] = []
    warp = 64 if architecture.startswith("gfx9") else 32

    def take(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], options: dict[str, Any]) -> None:
        assert assembly(kernel, arguments, options, "hip", architecture, warp)["hsaco"]
        compiled.append(kernel.__name__)

    with _launches_go_to(take):
        yield compiled


@contextmanager
def _launches_go_to(take: Callable[[Any, tuple[int, ...], dict[str, Any], dict[str, Any]], None]) -> Iterator[None]:
    """Launches inside, planned for an H100's multiprocessors, call `take(kernel, grid, arguments, options)` instead."""
    from pal_fast.kernels import launch
    from triton.runtime.jit import JITFunction

    def run(self: Any, *, grid: tuple[int, ...], warmup: bool, **arguments: Any) -> None:
        options = {name: arguments.pop(name) for name in launch.OPTIONS}
        take(self, grid, arguments, options)

    with mock.patch.object(JITFunction, "run", run), mock.patch.object(launch, "INTERPRETED_PROCESSORS", PROCESSORS):
        yield

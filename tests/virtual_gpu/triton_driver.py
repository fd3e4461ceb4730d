"""Triton's driver for the virtual GPU: kernels are compiled as for an H100, and their PTX is executed.

PAL_FAST_VIRTUAL_ARCHITECTURE is the target architecture: sm_90 by default, or sm_80.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable
from typing import Any

import torch

#: Bytes of shared memory that a block can have, by compute capability.
_SHARED_BYTES = {"sm_80": 163 * 1024, "sm_90": 227 * 1024}

ARCHITECTURE = os.environ.get("PAL_FAST_VIRTUAL_ARCHITECTURE", "sm_90")
if ARCHITECTURE not in _SHARED_BYTES:
    raise ValueError(f"PAL_FAST_VIRTUAL_ARCHITECTURE is one of {', '.join(_SHARED_BYTES)}, not {ARCHITECTURE!r}")
CAPABILITY = int(ARCHITECTURE.removeprefix("sm_"))

#: How an argument of a kernel's signature is laid out; pointers are "Q".
_FORMATS = {"i1": "?", "i8": "b", "i32": "i", "i64": "q", "u32": "I", "u64": "Q", "fp32": "f", "fp64": "d"}

#: The PTX of every compiled kernel, keyed by its machine code.
_ptx_of: dict[bytes, str] = {}


class _Utilities:
    """The driver functions that Triton calls."""

    def __init__(self, load_ptx: Callable[[str], int]) -> None:
        self._load_ptx = load_ptx

    def load_binary(self, name: str, machine_code: bytes, shared: int, device: int) -> tuple[Any, ...]:
        """Module, function, registers, spilled bytes, maximum number of threads."""
        module = self._load_ptx(_ptx_of[machine_code])
        return module, (module, name), 0, 0, 1024

    def unload_module(self, module: Any) -> None:
        """No-op: modules stay loaded."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        shared = _SHARED_BYTES[ARCHITECTURE]
        return {"max_shared_mem": shared, "multiprocessor_count": 4, "warpSize": 32, "max_num_regs": 65536}


class _Launcher:
    """Lays a launch's arguments out as the kernel's parameters."""

    functions: ctypes.CDLL

    def __init__(self, source: Any, metadata: Any) -> None:
        self._types = [*source.signature.values()]
        self._threads = 32 * metadata.num_warps
        self._shared = metadata.shared
        assert metadata.global_scratch_size == 0
        assert metadata.profile_scratch_size == 0

    def __call__(self, x: int, y: int, z: int, stream: int, function: Any, *rest: Any) -> None:
        module, name = function
        parameters = b""
        for kind, value in zip(self._types, rest[4:], strict=True):
            if kind == "constexpr":
                continue
            if kind.startswith("*"):
                code, value = "Q", 0 if value is None else value.data_ptr()
            else:
                code = _FORMATS[kind]
            parameters += b"\0" * (-len(parameters) % struct.calcsize(code)) + struct.pack(code, value)
        wanted = self.functions.virtual_gpu_parameter_bytes(module, name.encode())
        parameters += b"\0" * (wanted - len(parameters))  # scratch memory, of which there is none
        assert len(parameters) == wanted, f"{name} takes {wanted} bytes of parameters, not {len(parameters)}"
        grid = (ctypes.c_uint * 3)(x, y, z)
        failed = self.functions.virtual_gpu_launch(
            module, name.encode(), grid, self._threads, ctypes.c_int64(self._shared), parameters
        )
        if failed:
            raise RuntimeError(self.functions.virtual_gpu_failure().decode())


def install(functions: ctypes.CDLL, load_ptx: Callable[[str], int]) -> None:
    """Makes Triton's active driver the virtual GPU's."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import GPUDriver
    from triton.compiler.compiler import CompiledKernel

    class Driver(GPUDriver):
        def __init__(self) -> None:
            self.utils = _Utilities(load_ptx)
            self.launcher_cls = _Launcher
            self.get_current_device = lambda: 0
            self.get_current_stream = lambda _: 0
            self.set_current_device = lambda _: None
            self.get_device_capability = lambda _: divmod(CAPABILITY, 10)

        @classmethod
        def is_active(cls) -> bool:
            return True

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", CAPABILITY, 32)

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cuda", 0)

        def get_benchmarker(self) -> Any:
            raise NotImplementedError("a virtual GPU has no speed")

        def map_python_to_cpp_type(self, ty: str) -> str:
            raise NotImplementedError(ty)

    _Launcher.functions = functions
    construct = CompiledKernel.__init__

    def record(self: Any, *arguments: Any, **keywords: Any) -> None:
        construct(self, *arguments, **keywords)
        _ptx_of[self.kernel] = self.asm["ptx"]

    CompiledKernel.__init__ = record
    triton.runtime.driver.set_active(Driver())

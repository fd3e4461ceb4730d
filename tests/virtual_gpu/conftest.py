"""Builds the virtual GPU, and launches kernels on it."""

from __future__ import annotations

import ctypes
import shutil
import struct
from collections.abc import Callable

import numpy as np
import pytest
from support.toolkit import cuda_headers
from virtual_gpu import build
from virtual_gpu.device import library, load_ptx

Launch = Callable[..., str]


@pytest.fixture(scope="session")
def functions(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("c++") is None or cuda_headers() is None:
        pytest.skip("needs a C++ compiler and CUDA's headers")
    directory = tmp_path_factory.mktemp("virtual_gpu")
    build.build_library(directory)
    return library(str(directory))


@pytest.fixture
def launch(functions: ctypes.CDLL, seed: int) -> Launch:
    """launch(PTX, kernel, blocks, threads, *arrays, shared=0): what went wrong, or "".

    The arrays are the kernel's first parameters; the others are null.
    """

    def run(ptx: str, name: str, blocks: int, threads: int, *arrays: np.ndarray, shared: int = 0) -> str:
        module = load_ptx(functions, ptx)
        functions.virtual_gpu_seed(seed % 2**31)
        for array in arrays:
            functions.virtual_gpu_allocate(ctypes.c_void_p(array.ctypes.data), ctypes.c_int64(array.nbytes))
        parameters = struct.pack(f"{len(arrays)}Q", *(array.ctypes.data for array in arrays))
        parameters = parameters.ljust(functions.virtual_gpu_parameter_bytes(module, name.encode()), b"\0")
        grid = (ctypes.c_uint * 3)(blocks, 1, 1)
        failed = functions.virtual_gpu_launch(module, name.encode(), grid, threads, ctypes.c_int64(shared), parameters)
        for array in arrays:
            functions.virtual_gpu_free(ctypes.c_void_p(array.ctypes.data))
        return functions.virtual_gpu_failure().decode() if failed else ""

    return run

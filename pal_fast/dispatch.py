"""Chooses the implementation: which backends this machine supports, why the others cannot run, the choice per call."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.compiler import is_compiling

from pal_fast import _checks, _extension, ops
from pal_fast.constants import BACKENDS
from pal_fast.messages import first_line

_Function = TypeVar("_Function", bound=Callable[..., Any])

NAMESPACE = {"cuda": "pal_fast", "cpu": "pal_fast", "triton": "pal_fast_triton"}


@dataclass(frozen=True)
class BackendStatus:
    """One backend: whether it can run here, and what it runs on or why it cannot."""

    name: str
    available: bool
    detail: str

    def __str__(self) -> str:
        return f"{self.name:<9} {'available' if self.available else 'unavailable':<11} {self.detail}"


def backends() -> dict[str, BackendStatus]:
    """Every backend by name, with the reason for each that cannot run on this machine."""
    reasons = {"cuda": _why_not_cuda_now(_current_device()), "cpu": _load_extension(), "triton": _why_not_triton(None)}
    details = {
        "cuda": _cuda_detail,
        "cpu": lambda: f"{torch.get_num_threads()} threads",
        "triton": _triton_detail,
        "reference": lambda: "plain PyTorch, every device and dtype, any number of derivatives",
    }
    return {name: BackendStatus(name, not reasons.get(name), reasons.get(name) or details[name]()) for name in BACKENDS}


def _constant(function: _Function) -> _Function:
    """`torch.compiler.assume_constant_result` without importing the compiler: tracing records only the result."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_constant
def choose(requested: str | None, device: torch.device) -> str:
    """The backend for tensors on `device`: the requested one, or the fastest that can run there, now.

    Raises: ValueError for an unknown name; RuntimeError naming the reason if the requested one cannot run.
    """
    if requested is None:
        return "reference" if transform() else _fastest(device)
    _checks.choice("backend", requested, BACKENDS)
    reason = why_not(requested, device)
    if reason:
        raise RuntimeError(f"backend={requested!r} cannot run on {device}: {reason}")
    return requested


def transform() -> str:
    """The torch.func transform that is running ("Grad", "Vmap", "Jvp"...), or "". Only the reference supports them."""
    interpreter = None if is_compiling() else torch._C._functorch.peek_interpreter_stack()
    return "" if interpreter is None else str(interpreter.key().name)


def why_not(name: str, device: torch.device) -> str:
    """Why backend `name` cannot run on `device`; "" if it can."""
    if name == "reference":
        return ""
    if name == "cpu":
        return _load_extension() if device.type == "cpu" else "it takes CPU tensors only"
    if name == "cuda":
        return _why_not_cuda(device.index) if device.type == "cuda" else "it takes CUDA tensors only"
    return _why_not_triton(device)


@_constant
def namespace(name: str, device: torch.device) -> str:
    """The operator namespace of a non-reference backend, registered and ready for tensors on `device`."""
    if name == "triton":
        _triton_kernels(device)
    else:
        _load_extension()
    return NAMESPACE[name]


@lru_cache(maxsize=64)
def _fastest(device: torch.device) -> str:
    order = ("cuda", "triton") if device.type == "cuda" else ("cpu",) if device.type == "cpu" else ()
    for name in order:
        if not why_not(name, device):
            return name
    if order:
        _warn_slow(order[0], device.type, why_not(order[0], device))
    return "reference"


@lru_cache(maxsize=8)
def _warn_slow(wanted: str, device_type: str, reason: str) -> None:
    warnings.warn(
        f"pal_fast computes {device_type} tensors with its slow reference, because backend {wanted!r} cannot "
        f'run: {reason}. Pass backend="reference" if this is intended',
        stacklevel=5,
    )


@lru_cache(maxsize=1)
def _load_extension() -> str:
    """Loads the extension and registers fake kernels and autograd; "" or the reason why it cannot."""
    reason = _extension.load()
    if not reason:
        ops.register("pal_fast")
    return reason


@lru_cache(maxsize=64)
def _why_not_cuda(index: int | None) -> str:
    if torch.version.hip:
        return "this PyTorch is a ROCm build, and these kernels are for NVIDIA's GPUs"
    reason = _load_extension()
    if reason:
        return reason
    if not hasattr(torch.ops.pal_fast, "cuda_status"):
        return "the extension was built without CUDA (no usable nvcc at build time; PAL_FAST_CUDA=pypi brings one)"
    if not torch.cuda.is_available():
        return _no_gpu()
    status: str = torch.ops.pal_fast.cuda_status(torch.cuda.current_device() if index is None else index)
    return status


def _why_not_cuda_now(index: int | None) -> str:
    """As `_why_not_cuda`, but reports a device error (a bad state, too little memory) as the reason, uncached."""
    try:
        return _why_not_cuda(index)
    except RuntimeError as error:
        return first_line(error)


def _cuda_detail() -> str:
    architectures = _extension.build_info().get("cuda", "")
    return f"{torch.cuda.get_device_name()}; built for {architectures}"


def _interpreting() -> bool:
    """Whether triton interprets its kernels on the CPU; it reads the variable once, when first imported."""
    if os.environ.get("TRITON_INTERPRET", "0") != "1":
        return False
    language = sys.modules.get("triton.language")
    return language is None or type(language.sum).__name__ == "InterpretedFunction"


def _why_not_triton(device: torch.device | None) -> str:
    """For tensors on `device`; None means whichever device this machine has."""
    found = importlib.util.find_spec("triton")
    if found is None or found.origin is None:  # a folder of that name on sys.path has no origin
        return "the package triton is not installed"
    if device is None:
        device = torch.device("cpu" if _interpreting() and not torch.cuda.is_available() else "cuda")
    if device.type == "cpu":
        if _interpreting():
            return ""
        return "it takes CPU tensors only under TRITON_INTERPRET=1, set before triton is first imported"
    if device.type != "cuda":
        return "it takes CUDA tensors only"
    if not torch.cuda.is_available():
        return _no_gpu()
    major, minor = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and major < 8:
        return f"it needs a GPU of compute capability 8.0 or newer, and {device} has {major}.{minor}"
    return _why_no_launcher()


@lru_cache(maxsize=1)
def _why_no_launcher() -> str:
    """Why Triton cannot compile its launcher, which it does at the first launch; "" if it can."""
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "it compiles its launcher and finds no C compiler: put gcc or clang on PATH, or set CC to its name"
    scheme = sysconfig.get_default_scheme()
    # Debian's own scheme names a folder under /usr/local; the headers are in the standard one's, where Triton looks.
    scheme = "posix_prefix" if scheme == "posix_local" else scheme
    headers = Path(sysconfig.get_paths(scheme)["include"])
    if not (headers / "Python.h").exists():
        return f"it compiles its launcher and finds no Python.h in {headers}: install Python's headers (python3-dev)"
    return ""


def _no_gpu() -> str:
    built = "" if torch.version.cuda or torch.version.hip else " (this PyTorch is a CPU-only build)"
    return f"PyTorch sees no CUDA GPU{built}"


def _triton_detail() -> str:
    triton = importlib.import_module("triton")
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, interpreted"
    return f"triton {triton.__version__}; {where}"


@lru_cache(maxsize=64)
def _triton_kernels(device: torch.device) -> None:
    kernels = importlib.import_module("pal_fast.kernels")
    kernels.register()
    kernels.prepare(device)
    ops.register("pal_fast_triton")


def _current_device() -> int | None:
    return torch.cuda.current_device() if torch.cuda.is_available() else None

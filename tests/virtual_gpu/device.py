"""PyTorch's side of the virtual GPU: operators on its tensors run on the CPU, in the same memory.

`install()` makes `torch.cuda` report one device, in a PyTorch built without CUDA. pal_fast's operators call the CUDA
kernels of the extension, whose PTX the virtual GPU executes.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_map_only
from virtual_gpu import triton_driver
from virtual_gpu.build import EXTENSION, HERE, LIBRARY, PTX

NAME = "virtual GPU"


@functools.lru_cache(maxsize=1)
def library(directory: str) -> ctypes.CDLL:
    """libtorch_cuda.so of `directory`, whose functions runtime.cpp defines."""
    functions = ctypes.CDLL(str(Path(directory) / LIBRARY))
    functions.virtual_gpu_failure.restype = ctypes.c_char_p
    functions.virtual_gpu_launched.restype = ctypes.c_char_p
    functions.virtual_gpu_traffic.restype = ctypes.c_char_p
    return functions


def load_ptx(functions: ctypes.CDLL, ptx: str) -> int:
    """Loads the PTX and returns the number of its module."""
    module: int = functions.virtual_gpu_load(ptx.encode())
    if module < 0:
        raise RuntimeError(functions.virtual_gpu_failure().decode())
    return module


def _operators() -> list[Any]:
    """PyTorch's operators that a device must implement, without the composite ones."""
    found = []
    for name in torch._C._dispatch_get_all_op_names():
        if not name.startswith("aten::"):
            continue
        if torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd"):
            continue
        base, _, overload = name.removeprefix("aten::").partition(".")
        found.append(getattr(getattr(torch.ops.aten, base), overload or "default"))
    return found


#: The mode of `torch.cuda.set_sync_debug_mode`; "error" is honoured.
_waiting = {"mode": "default"}


def _waits(operator: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether the operator would synchronise with a GPU: it returns a value or a data-dependent shape."""
    name = operator.overloadpacket.__name__
    if name in {"copy_", "_copy_from"}:
        return {tensor.device.type for tensor in arguments[:2]} == {"cpu", "cuda"}
    return name in {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim"}


def _as_on_the_cpu(native: Any, operator: Any) -> Callable[..., Any]:
    def run(*arguments: Any, **keywords: Any) -> Any:
        if _waiting["mode"] == "error" and _waits(operator, arguments):
            raise RuntimeError(f"called a synchronizing CUDA operation: {operator.name()}")
        originals: dict[int, torch.Tensor] = {}
        held: list[torch.Tensor] = []

        def lower(value: Any) -> Any:
            if isinstance(value, torch.device):
                return torch.device("cpu") if value.type == "cuda" else value
            if value.device.type != "cuda":
                return value
            lowered = native.as_cpu(value)
            held.append(lowered)
            originals[id(lowered)] = value
            return lowered

        on_device = isinstance(keywords.get("device"), torch.device) and keywords["device"].type == "cuda"
        arguments, keywords = tree_map_only((torch.Tensor, torch.device), lower, (arguments, keywords))
        on_device = on_device or (bool(held) and keywords.get("device") != torch.device("cpu"))
        result = operator(*arguments, **keywords)

        def raised(value: torch.Tensor) -> torch.Tensor:
            if id(value) in originals:
                return originals[id(value)]
            return native.onto_device(value) if on_device else value

        return tree_map_only(torch.Tensor, raised, result)

    return run


def _of_metadata(operator: Any) -> Callable[..., Any]:
    """Views and other metadata-only operators, for which the CPU's kernels work on any device."""
    cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

    def run(*arguments: Any, **keywords: Any) -> Any:
        return operator.redispatch(cpu, *arguments, **keywords)

    return run


_OF_SHAPE_IN_PLACE = {"as_strided_", "detach_", "squeeze_", "t_", "transpose_", "unsqueeze_"}


def _register(native: Any) -> torch.library.Library:
    registered = torch.library.Library("aten", "IMPL")
    warnings.filterwarnings("ignore", "Warning only once for all operators")
    for operator in _operators():
        has_cpu = torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "CPU")
        if operator.is_view or operator.overloadpacket.__name__ in _OF_SHAPE_IN_PLACE:
            if has_cpu:
                registered.impl(operator, _of_metadata(operator), "CUDA")
        else:
            registered.impl(operator, _as_on_the_cpu(native, operator), "CUDA", allow_override=True)
    return registered


def _properties(_: object = None) -> SimpleNamespace:
    return SimpleNamespace(
        name=NAME, major=9, minor=0, multi_processor_count=4, total_memory=2**34, warp_size=32,
        regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, shared_memory_per_block=49152,
    )  # fmt: skip


class _Stream:
    cuda_stream = 0
    device = torch.device("cuda", 0)

    def wait_stream(self, _: object) -> None:
        """No-op: every operation is synchronous."""

    def synchronize(self) -> None:
        """No-op: every operation is synchronous."""


class _Profile:
    """`torch.profiler.profile`, reduced to the names of the launched kernels: those of pal_fast."""

    functions: ctypes.CDLL

    def __init__(self, **_: object) -> None:
        self._names: list[str] = []

    def __enter__(self) -> _Profile:
        self.functions.virtual_gpu_launched()
        return self

    def __exit__(self, *_: object) -> None:
        self._names = self.functions.virtual_gpu_launched().decode().splitlines()

    def events(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=name, device_type=torch.autograd.DeviceType.CUDA) for name in self._names]


def _patch(functions: ctypes.CDLL) -> None:
    _Profile.functions = functions
    torch.profiler.profile = _Profile  # type: ignore[assignment,misc]
    cuda = torch.cuda
    for name, value in {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "default_generators": (torch.default_generator,),
        "get_rng_state": lambda _=None: torch.get_rng_state(),
        "set_rng_state": lambda state, _=None: torch.set_rng_state(state),
        "get_device_name": lambda _=None: NAME,
        "get_device_capability": lambda _=None: (9, 0),
        "get_device_properties": _properties,
        "is_current_stream_capturing": lambda: False,
        "current_stream": lambda _=None: _Stream(),
        "synchronize": lambda _=None: None,
        "set_device": lambda _: None,
        "empty_cache": lambda: None,
        "manual_seed_all": lambda _: None,
        "manual_seed": lambda _: None,
        "_lazy_init": lambda: None,
        "set_sync_debug_mode": lambda mode: _waiting.update(mode=mode),
        "_exchange_device": lambda _: 0,
        "_maybe_exchange_device": lambda _: 0,
    }.items():
        setattr(cuda, name, value)
    torch._C._cuda_getDevice = lambda: 0  # type: ignore[attr-defined]


def _native(directory: Path) -> Any:
    """device.cpp, compiled for this PyTorch."""
    from torch.utils.cpp_extension import load

    build = directory / f"device-{torch.__version__}"
    build.mkdir(exist_ok=True)
    library_path = str(directory / LIBRARY)
    return load(
        "pal_fast_virtual_device", [str(HERE / "device.cpp")], build_directory=str(build), extra_cflags=["-O1"],
        extra_ldflags=[library_path],
    )  # fmt: skip


class Traffic(NamedTuple):
    """The launches' accesses to one allocation, or to shared memory, in one direction.

    Attributes:
        requests: warp instructions.
        bytes: distinct ones, summed over requests.
        units: sectors of 32 bytes, or wavefronts of shared memory, summed over requests.
        least: the units that the bytes would take if contiguous, or without bank conflicts.
    """

    requests: int
    bytes: int
    units: int
    least: int


@contextlib.contextmanager
def counted() -> Iterator[dict[tuple[int, str], Traffic]]:
    """The traffic of the launches inside, filled in at the end: by the start of the allocation (0: shared memory) and
    "read" or "write"."""
    functions: ctypes.CDLL = _Profile.functions
    functions.virtual_gpu_traffic(1)
    found: dict[tuple[int, str], Traffic] = {}
    try:
        yield found
    finally:
        for line in functions.virtual_gpu_traffic(0).decode().splitlines():
            begin, direction, *values = line.split()
            found[int(begin), direction] = Traffic(*map(int, values))


def reseed(seed: int) -> None:
    """Reshuffles blocks and threads, and draws another number of multiprocessors."""
    functions: ctypes.CDLL = _Profile.functions
    functions.virtual_gpu_seed(1 + seed % (2**31 - 2))
    functions.virtual_gpu_processors(1 + seed % 7)


def install(directory: Path) -> None:
    """Installs one device in this process; `directory` is the output of build.py."""
    if torch.version.cuda is not None or torch.version.hip is not None:
        raise RuntimeError(f"the virtual GPU needs a PyTorch that is built without CUDA, this is {torch.__version__}")
    from pal_fast import _extension

    functions = library(str(directory))
    native = _native(directory)
    load_ptx(functions, (directory / PTX).read_text())
    _patch(functions)
    native.install_hooks()
    install.registered = _register(native)  # type: ignore[attr-defined]
    _extension.find = lambda: directory / EXTENSION
    if importlib.util.find_spec("triton") is not None:
        triton_driver.install(functions, functools.partial(load_ptx, functions))

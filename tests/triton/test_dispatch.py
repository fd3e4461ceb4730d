"""Which backend runs, and why each of the others cannot: every reason, tested without the hardware."""

from __future__ import annotations

import importlib.util
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.triton_namesake import hide

import pal_fast
from pal_fast import _extension, cli, dispatch

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
hide()


@pytest.fixture(autouse=True)
def _dispatch_caches_cleared(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Clears what dispatch caches about this machine, before and after."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    caches = (dispatch._fastest, dispatch._why_not_cuda, dispatch._warn_slow, dispatch._why_no_launcher)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A simulated machine with a GPU; tests change its keys."""
    machine = {"capability": (9, 0), "status": "", "triton": True}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "A GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: machine["capability"])
    monkeypatch.setattr(dispatch, "_load_extension", lambda: "")
    operators = types.SimpleNamespace(cuda_status=lambda index: machine["status"])
    monkeypatch.setattr(torch.ops, "pal_fast", operators, raising=False)
    monkeypatch.setattr(_extension, "build_info", lambda: {"cuda": "75;90"})
    find = importlib.util.find_spec

    def find_spec(name: str, *rest: Any) -> Any:
        if name == "triton":
            return types.SimpleNamespace(origin="triton/__init__.py") if machine["triton"] else None
        return find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(dispatch, "_triton_detail", lambda: "triton")
    monkeypatch.setenv("CC", "cc")
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_paths", lambda _: {"include": str(tmp_path)})
    return machine


def test_every_backend_has_a_state_and_a_detail() -> None:
    status = pal_fast.backends()
    assert list(status) == ["cuda", "cpu", "triton", "reference"]
    assert status["reference"].available
    assert all(backend.detail for backend in status.values())
    assert not [name for name, backend in status.items() if backend.available != (not dispatch_reason(name))]


def dispatch_reason(name: str) -> str:
    device = CUDA if name == "cuda" or (name == "triton" and torch.cuda.is_available()) else CPU
    return dispatch.why_not(name, device)


def test_a_fully_supported_gpu_uses_the_compiled_kernels(gpu: dict[str, Any]) -> None:
    assert dispatch.choose(None, CUDA) == "cuda"
    assert pal_fast.backends()["cuda"].detail == "A GPU; built for 75;90"


@pytest.mark.parametrize(
    "status",
    [
        "the driver supports CUDA 12.2, the bundled runtime needs 13.0",
        "the extension holds no kernels for sm_70; it was built for 75;90",
    ],
)
def test_an_unsupported_driver_or_architecture_falls_back_to_triton(gpu: dict[str, Any], status: str) -> None:
    gpu["status"] = status
    assert dispatch.choose(None, CUDA) == "triton"
    assert pal_fast.backends()["cuda"].detail == status
    with pytest.raises(RuntimeError, match="backend='cuda' cannot run on cuda: ") as refused:
        dispatch.choose("cuda", CUDA)
    assert status in str(refused.value)


def test_a_failed_device_query_raises_and_is_not_cached(gpu: dict[str, Any]) -> None:
    """For instance out of memory: falling back to Triton for the rest of the process would be silent and slower."""
    asked = [RuntimeError("the kernels cannot be loaded on device 0: out of memory\nmore"), ""]

    def status(index: int) -> str:
        if isinstance(asked[0], RuntimeError):
            raise asked[0]
        return asked[0]

    torch.ops.pal_fast.cuda_status = status
    assert pal_fast.backends()["cuda"].detail == "the kernels cannot be loaded on device 0: out of memory"
    with pytest.raises(RuntimeError, match="out of memory"):
        dispatch.choose(None, CUDA)
    asked.pop(0)
    assert dispatch.choose(None, CUDA) == "cuda"


def test_a_machine_without_a_compiler_has_no_triton(gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match=r"backend='triton' cannot run on cuda: .* no C compiler"):
        dispatch.choose("triton", CUDA)


def test_a_machine_without_pythons_headers_has_no_triton(gpu: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "Python.h").unlink()
    with pytest.raises(RuntimeError, match=r"backend='triton' cannot run on cuda: .* no Python.h in "):
        dispatch.choose("triton", CUDA)


def test_pythons_headers_are_looked_for_where_triton_finds_them_on_debian(
    gpu: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {"posix_local": tmp_path / "local", "posix_prefix": tmp_path}
    monkeypatch.setattr(sysconfig, "get_default_scheme", lambda: "posix_local")
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme="posix_local": {"include": str(folders[scheme])})
    assert dispatch.choose("triton", CUDA) == "triton"


def test_pytorch_for_rocm_uses_triton(gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tensors claim to be CUDA tensors, and an extension with CUDA kernels may be installed."""
    monkeypatch.setattr(torch.version, "hip", "7.0")
    gpu["capability"] = (9, 4)
    assert dispatch.choose(None, CUDA) == "triton"
    assert "this PyTorch is a ROCm build" in pal_fast.backends()["cuda"].detail
    with pytest.raises(RuntimeError, match=r"backend='cuda' cannot run on cuda: this PyTorch is a ROCm build"):
        dispatch.choose("cuda", CUDA)


@pytest.mark.parametrize("kind", ["mps", "xpu", "meta", "privateuseone"])
def test_other_devices_have_only_the_reference(kind: str) -> None:
    device = torch.device(kind)
    assert dispatch.choose(None, device) == dispatch.choose("reference", device) == "reference"
    for name, takes in (("cpu", "CPU"), ("cuda", "CUDA"), ("triton", "CUDA")):
        with pytest.raises(RuntimeError, match=f"backend='{name}' cannot run on {kind}: it takes {takes} tensors only"):
            dispatch.choose(name, device)


def test_an_extension_without_cuda_falls_back_to_triton(gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "pal_fast", types.SimpleNamespace())
    assert dispatch.choose(None, CUDA) == "triton"
    assert "built without CUDA" in pal_fast.backends()["cuda"].detail


def test_a_package_without_extension_falls_back_to_triton(gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_load_extension", lambda: "the extension was not built (run ...)")
    assert dispatch.choose(None, CUDA) == "triton"
    for name in ("cuda", "cpu"):
        assert "not built" in pal_fast.backends()[name].detail


def test_without_any_kernel_the_reference_runs_and_warns_that_it_is_slow(gpu: dict[str, Any]) -> None:
    gpu["status"], gpu["triton"] = "the driver is too old", False
    with pytest.warns(UserWarning, match="slow reference, because backend 'cuda' cannot run: the driver is too old"):
        assert dispatch.choose(None, CUDA) == "reference"
    assert pal_fast.backends()["triton"].detail == "the package triton is not installed"


def test_triton_refuses_a_gpu_that_is_too_old(gpu: dict[str, Any]) -> None:
    gpu["capability"] = (7, 5)
    assert "8.0 or newer, and cuda has 7.5" in dispatch.why_not("triton", CUDA)


def test_without_a_gpu_both_gpu_backends_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(dispatch, "_load_extension", lambda: "")
    monkeypatch.setattr(torch.ops, "pal_fast", types.SimpleNamespace(cuda_status=lambda index: ""), raising=False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert dispatch.why_not("cuda", CUDA) == "PyTorch sees no CUDA GPU (this PyTorch is a CPU-only build)"
    if importlib.util.find_spec("triton") is not None:
        assert "PyTorch sees no CUDA GPU" in dispatch.why_not("triton", CUDA)


def test_cpu_tensors_use_the_cpu_kernels_and_triton_only_in_its_interpreter() -> None:
    if importlib.util.find_spec("triton") is None:
        assert dispatch.why_not("triton", CPU) == "the package triton is not installed"
    else:
        assert "TRITON_INTERPRET=1, set before triton is first imported" in dispatch.why_not("triton", CPU)
    assert dispatch.why_not("cuda", CPU) == "it takes CUDA tensors only"
    assert dispatch.why_not("cpu", CUDA) == "it takes CPU tensors only"
    assert dispatch.why_not("triton", torch.device("meta")) in (
        "it takes CUDA tensors only",
        "the package triton is not installed",
    )
    if not _extension.load():
        assert dispatch.choose(None, CPU) == "cpu"


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the package triton is not installed")
def test_the_interpreter_accepts_cpu_tensors_only_when_triton_is_named(device: str) -> None:
    if device == "cuda":
        pytest.skip("about the interpreter")
    assert dispatch.choose("triton", CPU) == "triton"
    assert dispatch.choose(None, CPU) != "triton"
    assert pal_fast.backends()["triton"].available


@pytest.mark.parametrize("name", ["CUDA", "gpu", "", None, 3])
def test_an_unknown_backend_is_refused(name: Any) -> None:
    if name is None:
        assert dispatch.choose(name, CPU) in ("cpu", "reference")
        return
    with pytest.raises((ValueError, TypeError), match="backend must be one of 'cuda', 'cpu', 'triton', 'reference'"):
        dispatch.choose(name, CPU)


def test_info_prints_each_reason(gpu: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    gpu["status"], gpu["capability"] = "the driver is too old for the bundled runtime", (7, 0)
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    assert "cuda      unavailable the driver is too old for the bundled runtime" in printed
    assert "triton    unavailable it needs a GPU of compute capability 8.0" in printed

"""Every run gets the device and the precision that it asks for, whatever ran before it in the same process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("accelerate")

from accelerate.state import AcceleratorState

from pal_fast.training.machine import make_accelerator


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    """Accelerate's settings are those of the process: other tests keep theirs from here."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_a_run_on_a_gpu_is_not_put_on_the_cpu_of_the_run_before(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_accelerator("cpu", "no").device.type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert make_accelerator(device, "no").device.type == "cuda"


def test_a_run_on_the_cpu_is_not_put_on_the_gpu_of_the_run_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert make_accelerator("cuda", "no").device.type == "cuda"
    assert make_accelerator("cpu", "no").device.type == "cpu"


def test_each_run_has_its_own_precision() -> None:
    assert make_accelerator("cpu", "no").mixed_precision == "no"
    assert make_accelerator("cpu", "bf16").mixed_precision == "bf16"


def test_a_gpu_that_accelerate_is_told_to_ignore_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert make_accelerator("auto", "no").device.type == "cpu"
    with pytest.raises(ValueError, match="device='cuda', but Accelerate is configured for cpu"):
        make_accelerator("cuda", "no")


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="PyTorch sees no CUDA device"):
        make_accelerator("cuda", "no")

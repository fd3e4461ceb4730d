"""What the GPU check runs in processes of their own: probes and small calls."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.gpu_check import probes, small_calls


def test_the_repetition_probe_also_runs_on_the_cpu_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    assert "cpu" in probes.backends_on(torch.device("cpu")), "the extension is not built"
    assert probes.main(["repeat", "--device", "cpu", "--times", "3"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(found) == 8
    assert all(finding["holds"] for finding in found)
    assert probes.main(["repeat", "--device", "cpu", "--times", "10000000", "--seconds", "1"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(found) == 8
    assert all("of 10000000 for which there was no time" in finding["claim"] for finding in found)


def test_bitwise_comparison_distinguishes_signed_zeros_and_matches_nan() -> None:
    value = torch.tensor([0.0, torch.nan])
    assert bool((probes.bits(value) == probes.bits(value.clone())).all())
    assert not bool((probes.bits(value) == probes.bits(torch.tensor([-0.0, torch.nan]))).all())


def test_the_small_calls_begin_with_every_kind_of_call_and_all_run(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = {type(call).__name__ for call in small_calls.calls("cuda")[: 2 * 2 * 4 * 2 + 9 + 4]}
    assert kinds == {"LossCall", "HeatmapCall", "BatchNormCall"}
    assert small_calls.main(["--backend", "cpu"]) == 0
    assert capsys.readouterr().out == "109 of 109 calls by cpu\n"


def test_a_probe_without_a_gpu_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert probes.main(["launches"]) == 1
    assert "PyTorch sees no CUDA GPU" in capsys.readouterr().out


@pytest.mark.gpu
def test_the_small_calls_run_on_this_gpu() -> None:
    assert small_calls.main(["--backend", "cuda"]) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("probe", ["launches", pytest.param("graph", marks=pytest.mark.gpu(hardware=True))])
def test_the_probes_hold_on_this_gpu(probe: str) -> None:
    assert probes.main([probe]) == 0

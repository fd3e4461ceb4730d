"""Each target in the specification gets a line computed from measurements; an unmeasured target is not met."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import harness, heatmap, loss, results_csv, targets
from benchmarks.gpu_check import command as gpu_check
from benchmarks.gpu_check import steps as gpu_steps
from benchmarks.gpu_check.command import Result
from benchmarks.step import command as step

MILLISECONDS = {"reference": 30.0, "compiled reference": 6.4, "triton": 2.2, "cuda": 2.0}
COPY = 4e12  # bytes a second
STEPS = (("plain", 1.0, 10**8), ("PALLoss", 1.5, 12 * 10**7), ("prepare_head", 1.3, 11 * 10**7), ("graphed", 0.9, None))


def loss_rows(case: loss.LossCase, share: float) -> list[harness.Row]:
    """Rows whose CUDA time follows from its share of the copy rate and whose other times scale as MILLISECONDS."""
    traffic = loss.traffic(case, "both")
    ours = 1e3 * traffic / (share * COPY)
    return [
        harness.Row(case, peer, "both", (t, t, t), 1.0, traffic, 1, "copy", COPY)
        for peer, t in ((peer, ours * ms / MILLISECONDS["cuda"]) for peer, ms in MILLISECONDS.items())
    ]


def step_row(case: step.Case, variant: str, ratio: float, peak: int | None) -> step.Row:
    return step.Row(case, variant, 1.25, (9 * ratio, 10 * ratio, 11 * ratio), ratio, peak, 5, 0.0, 0.0, 1.0)


def write(directory: Path, share: Callable[[loss.LossCase], float] = lambda _: 0.95, count: int = 99) -> None:
    """Writes results of the first `count` cases of each benchmark."""
    rows = [row for case in loss.gpu_cases()[:count] for row in loss_rows(case, share(case))]
    results_csv.write(directory / "loss_cuda.csv", [results_csv.record_of(row, {}) for row in rows])
    base, large = heatmap.GPU_BASE, heatmap.GPU_LARGE
    heatmaps = [
        harness.Row(case, peer, "forward", (ms, ms, ms), 1.0, 4 * case.batch * 224 * 224, 1, "write", COPY)
        for case, peer, ms in (
            (base, "kornia render_gaussian2d", 0.5),
            (base, "cuda", 4 * 256 * 224 * 224 / (0.8 * COPY) * 1e3),
            (large, "cuda", 4 * 1024 * 224 * 224 / (0.92 * COPY) * 1e3),
        )
    ]
    results_csv.write(directory / "heatmap_cuda.csv", [results_csv.record_of(row, {}) for row in heatmaps])
    shown = [step_row(case, variant, ratio, peak) for case in step.GPU_CASES[:count] for variant, ratio, peak in STEPS]
    records = [step.as_record(row, {}) for row in shown]
    results_csv.write_rows(directory / "step_cuda.csv", step.COLUMNS, records)


def lines_of(directory: Path) -> dict[str, str]:
    return {verdict.target: str(verdict) for verdict in targets.verdicts(directory)}


def test_measurements_are_compared_with_the_targets(tmp_path: Path) -> None:
    write(tmp_path)
    lines = lines_of(tmp_path)
    assert len(lines) == 4 * 3 + 3 + 5
    target = "loss, 256 MB a tensor, bfloat16 contiguous: 90% of the copy"
    assert lines[target].startswith(f"met          {target}: 95.0% to 95.0% in 3 of 3 cases")
    assert "met          loss, training shapes, float32 contiguous: 10x the reference: 15 to 15 in 12 of 12" in str(
        lines
    )
    assert "met          loss, training shapes, bfloat16 channels_last: 3x the compiled reference: 3.2 to 3.2" in str(
        lines
    )
    assert lines["heatmap: 90% of the write bandwidth"].startswith("NOT MET")
    assert "80.0% to 80.0% in 1 of 1 cases, 1 missed it" in lines["heatmap: 90% of the write bandwidth"]
    assert "92.0% to 92.0% in 1 of 1 cases" in lines["heatmap, larger than L2: 90% of the write bandwidth"]
    assert lines["heatmap: 20x kornia"].startswith("met          heatmap: 20x kornia: 31.1 to 31.1")
    assert lines["step, PALLoss: 1.10 x (1 + h) plain steps"].startswith("NOT MET")
    assert "1.2 to 1.2 in 36 of 36 cases, 36 missed it" in lines["step, PALLoss: 1.10 x (1 + h) plain steps"]
    assert "met          step, prepare_head: 1.10 x (1 + h) plain steps: 1.04 to 1.04 in 36 of 36" in str(lines)
    assert lines["step, PALLoss: 1.15 x the plain step's peak memory"].startswith("NOT MET")
    assert lines["step, prepare_head: 1.15 x the plain step's peak memory"].startswith("met ")
    assert "0.9 to 0.9 in 12 of 12 cases" in lines["step, graphed, batch 16: no slower than plain"]


def test_the_worst_case_is_named_and_a_share_just_below_is_not_rounded_up(tmp_path: Path) -> None:
    worst = next(c for c in loss.gpu_cases() if c.batch == 1280)
    write(tmp_path, lambda case: 0.8996 if case == worst else 0.97)
    line = lines_of(tmp_path)["loss, 256 MB a tensor, bfloat16 contiguous: 90% of the copy"]
    assert line.startswith("NOT MET")
    assert "90.0% to 97.0% in 3 of 3 cases, 1 missed it, worst (1280, 2048, 7, 7) bfloat16 NCHW" in line


def test_with_some_cases_a_target_is_met_so_far_and_with_none_it_is_unmeasured(tmp_path: Path) -> None:
    assert all(line == f"not measured {target}" for target, line in lines_of(tmp_path).items())
    write(tmp_path, count=5)
    line = lines_of(tmp_path)["loss, training shapes, bfloat16 contiguous: 10x the reference"]
    assert line.startswith("met so far")
    assert "in 1 of 12 cases" in line


def test_a_short_run_of_the_loss_measures_a_case_of_each_target_in_both_dtypes_and_layouts(tmp_path: Path) -> None:
    write(tmp_path, count=8)
    short = [verdict for verdict in targets.verdicts(tmp_path) if verdict.target.startswith("loss")]
    assert len(short) == 4 * 3
    assert all(verdict.found for verdict in short)


def test_a_short_run_of_the_step_measures_a_case_of_each_target(tmp_path: Path) -> None:
    write(tmp_path, count=6)
    short = [verdict for verdict in targets.verdicts(tmp_path) if verdict.target.startswith("step")]
    assert all(verdict.found for verdict in short)


def test_two_runs_on_one_device_are_judged_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write(first)
    (first / "step_cuda.csv").unlink()
    write(second)
    for name in ("loss", "heatmap"):
        (second / f"{name}_cuda.csv").unlink()
    assert targets.main([str(first), str(second)]) == 0
    assert "not measured" not in capsys.readouterr().out
    (other,) = [row for row in results_csv.read(second / "step_cuda.csv")][:1]
    results_csv.write_rows(second / "step_cuda.csv", step.COLUMNS, [{**other, "device": "another GPU"}])
    with pytest.raises(SystemExit):
        targets.main([str(first), str(second)])
    assert "the results are of several devices: , another GPU" in capsys.readouterr().err


def test_results_of_an_earlier_run_are_ignored(tmp_path: Path) -> None:
    write(tmp_path)
    os.utime(tmp_path / "loss_cuda.csv", (1000, 1000))
    states = {verdict.target: verdict.state for verdict in targets.verdicts(tmp_path, since=2000)}
    assert all(state == "not measured" for target, state in states.items() if target.startswith("loss"))
    assert states["heatmap: 20x kornia"] == "met"


def test_the_last_12000_characters_of_output_hold_the_verdicts_and_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "architecture_of", lambda _: "90")
    monkeypatch.setattr(gpu_check, "environment_of", lambda _: {"device": "A GPU"})

    def performed(of: gpu_steps.Step, *_: object) -> Result:
        write(tmp_path)
        return Result(of.name, of.shows, "", "failed", "x" * 500, 100.0, "output\n" * 100)

    monkeypatch.setattr(gpu_check, "perform", performed)
    assert gpu_check.main(["--output", str(tmp_path), "--minutes", "9"]) == 1
    tail = capsys.readouterr().out[-12_000:]
    for verdict in targets.verdicts(tmp_path):
        assert str(verdict) in tail
    first, last = loss.gpu_cases()[0], step.GPU_CASES[0]
    assert f"({first.batch}, {first.channels}, {first.height}, {first.width}) bfloat16 NCHW, us: eager" in tail
    assert f"{last.model} {last.layer} {last.batch} {last.dtype_name}, 1 + h 1.25: plain 10.0 ms PALLoss 1.50" in tail
    assert "NOT MET" in (tmp_path / "gpu_check.md").read_text()


def test_a_case_counts_as_large_by_its_tensors_size_in_bytes() -> None:
    case = loss.LossCase(256, 512, 28, 28)
    assert targets._large({key: str(value) for key, value in case.columns().items()})
    half = replace(case, dtype=torch.bfloat16)
    assert not targets._large({key: str(value) for key, value in half.columns().items()})

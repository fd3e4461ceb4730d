"""The step benchmark runs, and reports no time for a step whose gradients are wrong."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.networks import Tokens

pytest.importorskip("torchvision", reason="the benchmark's networks are torchvision's")

from benchmarks import machine
from benchmarks.profiling import calls_of, peak_of
from benchmarks.step import cases, judge
from benchmarks.step import command as step

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
CASE = cases.Case("resnet18", "layer3", 64, 2, torch.float32)


def test_the_docs_show_the_recorded_rows_and_the_target_is_met() -> None:
    page = (ROOT / "docs" / "performance_step.md").read_text()
    with (ROOT / "benchmarks" / "results" / "step_cpu.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["ms"]]
    shown = [line for line in page.splitlines() if line.startswith("| ") and line.count("|") == 9][1:]
    assert len(shown) == len(rows) > 10
    for line, row in zip(shown, rows, strict=True):
        ratio, floor = float(row["ratio"]), float(row["one_plus_h"])
        figures = f"| {row['variant']} | {float(row['ms']):.0f} | {ratio:.3f} | {ratio / floor:.3f} |"
        assert f"{figures} {float(row['peak_mb']):.0f} | {row['calls']} |" in line
        if row["variant"] == "plain":
            assert line.startswith(f"| {row['model']} {row['layer']}, {row['image']}x{row['image']}, {row['batch']} |")
        if row["variant"] == "prepare_head" and row["model"] == "resnet18":
            assert ratio <= 1.10 * floor


def test_the_quick_run_fills_the_table(tmp_path: Path) -> None:
    output = tmp_path / "step.csv"
    command = [sys.executable, "-m", "benchmarks.step", "--quick", "--device", "cpu", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with output.open() as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    for name in ("plain", "naive", "PALLoss", "prepare_head"):
        assert float(rows[name]["ms"]) > 0
        assert float(rows[name]["float64_error"]) <= judge.EXACT
        assert float(rows[name]["gradient_error"]) <= float(rows[name]["gradient_bound"])
        assert rows[name]["device"] == machine.processor()
        assert rows[name]["load"]
        assert set(machine.COLUMNS) <= set(rows[name])
    assert float(rows["plain"]["ratio"]) == 1
    assert rows["graphed"]["ms"] == ""
    assert "CUDA" in rows["graphed"]["note"]


class Signed(cases.Naive):
    """g * f in place of abs(g) * f."""

    absolute = False


class SlightlyOff(cases.Naive):
    """The attribution loss is off by one part in ten thousand, far less than float32 rounding."""

    def losses(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        logits, loss = super().losses()
        return logits, None if loss is None else loss * 1.0001


@pytest.mark.parametrize("wrong", [Signed, SlightlyOff])
def test_a_step_with_wrong_gradients_is_not_timed(monkeypatch: pytest.MonkeyPatch, wrong: type[cases.Step]) -> None:
    monkeypatch.setitem(step.VARIANTS, "naive", wrong)
    (row,) = step.measure_case(CASE, CPU, ["naive"], rounds=1)
    assert row.milliseconds is None
    assert row.note.startswith("wrong")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_network_with_attention_is_timed_in_every_variant(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """The naive step, to which all others are compared, needs attention that can be differentiated twice."""
    monkeypatch.setattr(cases, "_network", lambda case: Tokens())
    monkeypatch.setattr(cases, "CLASSES", 5)
    case = cases.Case("tokens", "blocks.1", 16, 4, dtype)
    rows = step.measure_case(case, CPU, step.EAGER, rounds=1)
    notes = {row.variant: row.note for row in rows}
    assert not {name for name, note in notes.items() if note.startswith("failed")}, notes
    assert {row.variant for row in rows if row.milliseconds} >= {"plain", "naive", "PALLoss", "prepare_head"}, notes


def test_a_failing_step_is_reported_and_the_others_still_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaking(cases.Naive):
        """Fails once it is timed."""

        calls = 0

        def losses(self) -> tuple[torch.Tensor, torch.Tensor | None]:
            Breaking.calls += 1
            if Breaking.calls > 5:
                raise RuntimeError("out of something\nand more")
            return super().losses()

    monkeypatch.setitem(step.VARIANTS, "naive", Breaking)
    plain, naive = step.measure_case(CASE, CPU, ["plain", "naive"], rounds=2)
    assert plain.milliseconds is not None
    assert naive.milliseconds is None
    assert naive.note == "failed: RuntimeError: out of something"


def test_the_first_cases_cover_each_network_at_every_batch_size_in_both_dtypes() -> None:
    first = step.GPU_CASES[: len(step.LAYERS) * 3 * 2]
    assert len({(case.model, case.batch, case.dtype) for case in first}) == len(first)
    assert len(set(step.GPU_CASES)) == len(step.GPU_CASES) == 36


def test_the_head_share_is_its_fraction_of_the_multiply_adds() -> None:
    # ResNet-18 at 64x64: layer4 works on 2x2 maps of 512 channels, fc on one vector.
    layer4 = 4 * (256 * 512 * 9 + 3 * 512 * 512 * 9 + 256 * 512)
    layer3 = 16 * (128 * 256 * 9 + 3 * 256 * 256 * 9 + 128 * 256)
    layer2 = 64 * (64 * 128 * 9 + 3 * 128 * 128 * 9 + 64 * 128)
    below = 1024 * 3 * 64 * 49 + 256 * 4 * 64 * 64 * 9 + layer2 + layer3
    head = layer4 + 512 * cases.CLASSES
    assert cases.head_share(CASE) == pytest.approx(head / (head + below), rel=1e-6)


def test_peak_memory_counts_live_tensors_and_calls_count_every_operator() -> None:
    def work() -> torch.Tensor:
        kept = torch.ones(1000)  # 4000 bytes
        for _ in range(3):
            kept.mul_(2)
            kept + 1  # 4000 bytes, freed immediately
        return kept.view(10, 100).sum()  # a view, and 4 bytes

    assert 8000 <= peak_of(work, CPU) < 8100  # PyTorch also makes tensors of the Python numbers
    assert calls_of(work, CPU) == 1 + 3 * 2 + 2


def test_a_prepared_step_of_resnet50_fits_the_memory_bound() -> None:
    case = cases.Case("resnet50", "layer3", 160, 8, torch.float32)
    peaks = {}
    for kind in (cases.Plain, cases.Prepared):
        training_step = kind(case, CPU)
        training_step()
        training_step.model.zero_grad(set_to_none=True)
        peaks[kind] = peak_of(training_step, CPU)
    assert peaks[cases.Prepared] <= 1.15 * peaks[cases.Plain]

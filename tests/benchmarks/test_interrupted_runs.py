"""A run in which a peer fails, the GPU is lost or time runs out keeps its results and reports why it ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.squares import CPU, Square, options_of, peer, subject

from benchmarks import command, deadline, harness, lost_device, results_csv
from benchmarks.command import run_subject
from benchmarks.harness import Subject


def test_a_peer_that_fails_gets_no_time_and_does_not_stop_the_others(tmp_path: Path) -> None:
    calls: list[int] = []

    def breaks_when_timed(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 8:
            raise RuntimeError("an illegal something\nwas met")
        return x.square()

    def unable(x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("it needs 300 GB")

    of = subject(peer("unable", unable), peer("breaks", breaks_when_timed), peer("square", torch.square))
    assert run_subject(of, options_of(output=tmp_path)) == 1
    records = results_csv.read(tmp_path / "squares_cpu.csv")
    assert {r["note"] for r in records if r["peer"] == "unable"} == {"failed: OutOfMemoryError: it needs 300 GB"}
    assert "failed: RuntimeError: an illegal something" in {r["note"] for r in records if r["peer"] == "breaks"}
    assert all(r["p50_ms"] for r in records if r["peer"] == "square")
    assert run_subject(of, options_of(without=["unable", "breaks"])) == 0


def test_a_lost_gpu_ends_the_run_which_keeps_earlier_cases_and_names_the_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost(of: Subject, case: Square, *_: Any) -> list[harness.Row]:
        if case.of == 1:
            raise lost_device.LostDeviceError("b")
        return [harness.Row(case, "a", "forward", milliseconds=(1.0, 1.0, 1.0))]

    monkeypatch.setattr(command, "measure", lost)
    of = replace(subject(), cases=lambda device, quick: [Square(i) for i in range(3)])
    assert run_subject(of, options_of(output=tmp_path)) == lost_device.LOST
    assert [r["peer"] for r in results_csv.read(tmp_path / "squares_cpu.csv")] == ["a"]
    assert lost_device.lost_peer(capsys.readouterr().out) == "b"


def test_the_gpu_counts_as_lost_when_it_stops_responding(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    lost_device.recover("a", error, torch.device("cuda"))

    def fails(_: object) -> None:
        raise error

    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    lost_device.recover("a", error, CPU)
    with pytest.raises(lost_device.LostDeviceError, match="lost the GPU in 'a'"):
        lost_device.recover("a", error, torch.device("cuda"))


def test_a_run_ends_before_a_case_that_would_end_too_late(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = [0.0]
    monkeypatch.setattr(deadline.time, "perf_counter", lambda: now[0])

    def slow(of: Subject, case: Square, *_: Any) -> list[harness.Row]:
        now[0] += 4
        return [harness.Row(case, "a", "forward", note=str(case.of))]

    monkeypatch.setattr(command, "measure", slow)
    of = replace(subject(), cases=lambda device, quick: [Square(i) for i in range(9)])
    run_subject(of, options_of(output=tmp_path, seconds=10))
    assert [r["note"] for r in results_csv.read(tmp_path / "squares_cpu.csv")] == ["0", "1"]
    assert deadline.Deadline(0).allows_another(), "the first is always measured"


def test_a_slow_first_case_affects_only_the_estimate_for_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(deadline.time, "perf_counter", lambda: now[0])
    limit, begun = deadline.Deadline(60), 0
    for seconds in (30, *[2] * 40):
        if not limit.allows_another():
            break
        now[0] += seconds
        begun += 1
    assert now[0] == 60
    assert begun == 16

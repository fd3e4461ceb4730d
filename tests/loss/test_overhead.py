"""The Python overhead of PALLoss per step over the bare double backward."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from support.threads import one_thread

from benchmarks import machine, overhead
from pal_fast import dispatch

RESULTS = Path(overhead.__file__).parent / "results" / overhead.NAME


def test_the_recorded_overhead_is_within_the_limit_and_matches_the_docs() -> None:
    with RESULTS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["backend"] for row in rows] == ["cpu", "reference"]
    page = (RESULTS.parents[2] / "docs" / "training_loops.md").read_text()
    for row in rows:
        assert 0 < float(row["added_us"]) <= overhead.LIMIT_US
        assert set(machine.COLUMNS) <= set(row)
        assert f"| `{row['backend']}` | {row['bare_us']} µs | {row['with_pal_us']} µs | {row['added_us']} µs |" in page


@one_thread()
def test_the_python_overhead_of_a_call_is_bounded() -> None:
    """The limit is for a quiet machine; three times the limit must hold on any."""
    reason = dispatch.why_not("cpu", torch.device("cpu"))
    if reason:
        pytest.skip(reason)
    bare, with_loss = overhead.measure("cpu", rounds=12)
    assert 0 < with_loss - bare < 3 * overhead.LIMIT_US


@pytest.mark.parametrize(("added", "status"), [(99.0, 0), (101.0, 1)])
def test_an_overhead_above_the_limit_fails_the_benchmark(added: float, status: int, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(overhead, "measure", lambda backend, rounds: (500.0, 500.0 + added))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(machine, "environment", lambda device: dict.fromkeys(machine.COLUMNS, "x"))
    assert overhead.main(["--output", str(tmp_path)]) == status
    assert (tmp_path / overhead.NAME).is_file()

"""The study: its plan, its table on disk and its statistics."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("scipy", reason="the study's statistics need SciPy")

from benchmarks import study, study_report
from benchmarks.study_runs import Condition, FaceSet, prior_landmarks


def test_every_run_is_planned_once_with_every_seed() -> None:
    runs = study.plan()
    assert len(set(runs)) == len(runs)
    assert {run.seed for run in runs} == set(study.SEEDS)
    assert len(study.plan(["core"])) == 7 * len(study.SEEDS)


def test_the_table_on_disk_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "study.csv"
    condition = Condition(prior="random", absolute=False, weight=0.3, seed=2)
    values = [*condition.fields().values(), 0.5, 0.4, 0.3]
    path.write_text(",".join(study.COLUMNS) + "\n" + ",".join(map(str, values)) + "\n")
    assert study.read(path) == {condition: {"accuracy": 0.5, "accuracy_occluded": 0.4, "alignment": 0.3}}


def test_interval_is_students() -> None:
    mean, half = study_report.interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.302652 / math.sqrt(3), rel=1e-5)


def test_a_shuffled_face_never_keeps_its_own_landmarks(generator: torch.Generator) -> None:
    landmarks = torch.arange(50.0).view(50, 1, 1).expand(50, 68, 2)
    faces = FaceSet(torch.empty(50, 0), torch.zeros(50), landmarks, torch.zeros(50), torch.zeros(50))
    for _ in range(20):
        shuffled = prior_landmarks("shuffled", faces, generator)
        assert (shuffled != landmarks).all()
        assert shuffled[:, 0, 0].sort().values.equal(landmarks[:, 0, 0])


def test_the_table_pairs_runs_by_seed() -> None:
    rows = {}
    for seed, gain in enumerate((0.1, 0.2, 0.3)):
        rows[Condition(seed=seed)] = {"accuracy": 0.3, "accuracy_occluded": 0.2, "alignment": 0.1}
        rows[Condition(prior="landmarks", weight=1.0, seed=seed)] = {
            "accuracy": 0.3 + gain,
            "accuracy_occluded": 0.2,
            "alignment": 0.9,
        }
    last = study_report.table(rows).splitlines()[-1]
    assert "prior=landmarks, weight=1.0 | 3 | 50.0 ± 24.8 |" in last
    assert last.endswith("+20.0 | 0.074 |")

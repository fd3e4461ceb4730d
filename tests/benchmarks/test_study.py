"""The study: its plan, its table on disk, its settings, its report and its pictures."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("scipy", reason="the study's statistics need SciPy")

from benchmarks.study import command as study
from benchmarks.study import groups, pictures, report, runs, set_up
from benchmarks.study.runs import BACKEND, Condition, FaceSet, epochs_for, margin, prior_landmarks, run
from pal_fast import PALLoss, demo, landmark_heatmap
from pal_fast.faces.experiment import BATCH, EPOCHS, SIZE, TRAINING_FACES, fresh_faces
from pal_fast.faces.network import LAYER, FaceNet


def measures(accuracy: float) -> dict[str, float]:
    return dict.fromkeys(study.MEASURES, 0.25) | {"accuracy": accuracy}


def test_every_run_is_planned_once_with_every_seed() -> None:
    runs = study.plan()
    assert len(set(runs)) == len(runs)
    assert {run.seed for run in runs} == set(study.SEEDS)
    assert len(study.plan(["core"])) == 10 * len(study.SEEDS)
    assert {run.seed for run in study.plan(["blind"], range(10, 20))} == set(range(10, 20))


def test_the_seeds_differ_from_those_used_to_choose_the_settings() -> None:
    assert not set(study.SEEDS) & {*demo.SEEDS, 100, 101}
    assert len(study.SEEDS) >= 5


def test_every_condition_constructs_a_loss() -> None:
    """The plan's options are passed to PALLoss; a typing error must not surface after an hour."""
    model = FaceNet()
    for condition in study.plan(seeds=(0,)):
        options = condition.pal_options()
        assert (options is None) == (condition.prior == "none")
        if options is not None:
            assert options["backend"] == BACKEND
            PALLoss(model, LAYER, **options).remove()


def test_small_and_large_sets_are_trained_as_long_as_stated() -> None:
    steps = {n: epochs_for(n) * math.ceil(n / BATCH) for n in (50, 100, TRAINING_FACES, 700, 2000)}
    assert epochs_for(TRAINING_FACES) == EPOCHS
    assert all(steps[n] == steps[TRAINING_FACES] for n in (50, 100, 700))
    assert epochs_for(2000) == 8


def test_a_run_produces_a_row_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "STEPS", 1)
    monkeypatch.setattr(runs, "_fresh_faces", lambda occlusion, scatter: fresh_faces(30, occlusion, scatter))
    row = run(Condition(prior="redrawn", target="margin", weight=1.0, images=8, seed=3))
    assert list(row) == list(study.COLUMNS)
    assert all(0 <= float(row[name]) <= 1 for name in ("accuracy", "accuracy_occluded", "follows_cue"))  # type: ignore[arg-type]


def test_the_margin_is_invariant_to_a_shift_of_the_logits(generator: torch.Generator) -> None:
    logits, labels = torch.randn(5, 7, generator=generator), torch.arange(5)
    shifted = logits + torch.randn(5, 1, generator=generator)
    torch.testing.assert_close(margin(logits, labels), margin(shifted, labels), rtol=1e-4, atol=1e-5)


def test_the_table_round_trips_through_disk(tmp_path: Path) -> None:
    path = tmp_path / "study.csv"
    condition = Condition(prior="random", absolute=False, weight=0.3, seed=2)
    values = [*asdict(condition).values(), 0.5, 0.4, 0.3, 0.2, 0.1]
    path.write_text(",".join(study.COLUMNS) + "\n" + ",".join(map(str, values)) + "\n")
    assert study.read(path) == {condition: dict(zip(study.MEASURES, (0.5, 0.4, 0.3, 0.2, 0.1), strict=True))}


def test_rows_from_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "set_up.json"
    with pytest.raises(RuntimeError, match="missing"):
        set_up.claim(path, fresh=False)
    set_up.claim(path, fresh=True)
    set_up.claim(path, fresh=False)
    kept = json.loads(path.read_text())
    kept["landmarks"][3] += 0.5
    kept["EPOCHS"] += 1
    path.write_text(json.dumps(kept))
    with pytest.raises(RuntimeError, match="EPOCHS, landmarks differ"):
        set_up.claim(path, fresh=False)


def test_the_published_rows_come_from_the_settings_in_this_tree() -> None:
    """Whoever changes the faces, the network or the recipe must run the study again."""
    set_up.claim(study.RESULTS.with_name("study_set_up.json"), fresh=False)


def faces_with(landmarks: torch.Tensor) -> FaceSet:
    nothing = torch.zeros(len(landmarks))
    return FaceSet(torch.empty(len(landmarks), 0), nothing, landmarks, nothing, nothing)


def mean_heatmap(kind: str, generator: torch.Generator, sigma: float = 3.0) -> torch.Tensor:
    """The mean heatmap, (12, 12), of a control's points over many faces."""
    points = prior_landmarks(kind, faces_with(torch.full((2000, 68, 2), torch.nan)), sigma, generator)
    if callable(points):
        points = points(torch.arange(2000))
    return landmark_heatmap(points, (12, 12), image_size=SIZE, sigma=sigma, backend="reference").mean(0)


@pytest.mark.parametrize("kind", ["even", "redrawn"])
def test_even_controls_have_a_uniform_mean_heatmap(kind: str, generator: torch.Generator) -> None:
    mean = mean_heatmap(kind, generator)
    # One heatmap's cells have a relative spread of 0.55, so the mean of 2000 heatmaps has one of 0.012.
    assert (mean / mean.mean() - 1).abs().max() < 0.08


def test_random_controls_have_the_frame_controls_mean_heatmap(generator: torch.Generator) -> None:
    mean, frame = mean_heatmap("random", generator), mean_heatmap("frame", generator)
    assert mean[0, 0] < 0.6 * mean[6, 6]
    assert (mean / mean.mean() - frame / frame.mean()).abs().max() < 0.08


def test_points_are_redrawn_at_every_step(generator: torch.Generator) -> None:
    draw = prior_landmarks("redrawn", faces_with(torch.zeros(9, 68, 2)), 3.0, generator)
    assert callable(draw)
    first, second = draw(torch.tensor([3, 5])), draw(torch.tensor([3, 5]))
    assert first.shape == second.shape == (2, 129, 2)
    assert (first != second).any()


def test_the_average_control_uses_one_face_for_all(generator: torch.Generator) -> None:
    landmarks = torch.randn(9, 68, 2, generator=generator)
    average = prior_landmarks("average", faces_with(landmarks), 3.0, generator)
    torch.testing.assert_close(average, landmarks.mean(0).expand(9, 68, 2))


def test_a_shuffled_face_never_keeps_its_own_landmarks(generator: torch.Generator) -> None:
    landmarks = torch.arange(50.0).view(50, 1, 1).expand(50, 68, 2)
    for _ in range(20):
        shuffled = prior_landmarks("shuffled", faces_with(landmarks), 3.0, generator)
        assert (shuffled != landmarks).all()
        assert shuffled[:, 0, 0].sort().values.equal(landmarks[:, 0, 0])


def rows_with_gains(*gains: float) -> dict[Condition, dict[str, float]]:
    rows = {}
    for seed, gain in enumerate(gains):
        rows[Condition(seed=seed)] = measures(0.3)
        rows[Condition(prior="landmarks", weight=1.0, seed=seed)] = measures(0.3 + gain)
    return rows


def test_the_table_pairs_runs_by_seed() -> None:
    last = report.table(rows_with_gains(0.1, 0.2, 0.3)).splitlines()[-1]
    assert "PAL, weight=1 | 3 | 50.0 ± 24.8 |" in last
    assert last.endswith("| +20.0 | 0.074 |")


def test_equal_gains_have_no_p_value_in_the_table() -> None:
    last = report.table(rows_with_gains(0.1, 0.1, 0.1)).splitlines()[-1]
    assert last.endswith("| +10.0 |  |")


def test_a_seed_without_its_baseline_is_not_paired() -> None:
    rows = rows_with_gains(0.1, 0.2, 0.3)
    del rows[Condition(seed=2)]
    last = report.table(rows).splitlines()[-1]
    assert "| 3 | 50.0" in last
    assert "| +15.0 |" in last


def test_plots_are_drawn_from_the_available_runs(tmp_path: Path) -> None:
    rows = rows_with_gains(0.1, 0.2)
    rows |= {replace(c, images=50): measures(0.2) for c in list(rows)}
    pictures.draw(groups.by_condition(rows), tmp_path)
    pictures.draw({}, tmp_path / "empty")
    names = {path.name for path in tmp_path.glob("*.png")}
    assert names == {path.name for path in (tmp_path / "empty").glob("*.png")}
    assert len(names) == 3

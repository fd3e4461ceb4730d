"""The demo, in a tiny version: it trains as stated, counts its steps, measures correctly and draws its figure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pal_fast import cli, demo
from pal_fast.faces import EXPRESSIONS
from pal_fast.faces.experiment import fresh_faces, judge, train, training_faces
from pal_fast.faces.network import FaceNet


@pytest.fixture(scope="module")
def outcomes() -> dict[str, demo.Outcome]:
    return demo.run(seeds=(0,), faces=34, test=60, epochs=1)


def test_every_step_is_counted_and_timed(outcomes: dict[str, demo.Outcome]) -> None:
    total = sum(len(outcome.step_seconds) for outcome in outcomes.values())
    assert total == demo.steps(1, 34, 1) == 4
    assert all(seconds > 0 for outcome in outcomes.values() for seconds in outcome.step_seconds)


def test_both_methods_start_from_equal_weights_and_diverge() -> None:
    """Networks of one seed share initial weights and sample order, so without a step they are identical."""
    faces = training_faces(0, 34)
    alone = train(faces, seed=0, epochs=1)
    again = train(faces, seed=0, epochs=1)
    unweighted = train(faces, seed=0, pal={"weight": 0.0}, epochs=1)
    weighted = train(faces, seed=0, pal=demo.PAL_OPTIONS, epochs=1)
    for a, b, c in zip(alone.parameters(), again.parameters(), unweighted.parameters(), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=0, atol=1e-6)
    assert any(not torch.equal(a, b) for a, b in zip(alone.parameters(), weighted.parameters(), strict=True))


def test_training_leaves_no_hook_and_keeps_the_random_state() -> None:
    before = torch.random.get_rng_state()
    model = train(training_faces(0, 34), seed=0, pal=demo.PAL_OPTIONS, epochs=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert not model.training


def test_the_measures_of_a_network_with_a_constant_prediction() -> None:
    faces = fresh_faces(80)
    model = FaceNet().eval()
    with torch.no_grad():
        model.head[-1].weight.zero_()
        model.head[-1].bias.copy_(torch.eye(7)[3])
    judged = judge(model, faces)
    assert judged.accuracy == pytest.approx(float((faces.labels == 3).double().mean()))
    assert judged.follows_cue == pytest.approx(float((faces.cues == 3).double().mean()))
    assert judged.alignment == judged.alignment_of_sum == 0.0  # no logit depends on the layer: flat maps


def test_the_table_states_means_and_every_seed() -> None:
    judged = [demo.Judgement(0.25, 0.5, 0.125, 0.0), demo.Judgement(0.75, 0.25, 0.375, 0.0)]
    text = demo.table({"with PAL": demo.Outcome(judged, [0.010, 0.030, 0.020])})
    assert "50.0 %              37.5 %                  0.25         20.0 ms" in text
    assert "by seed 25.0, 75.0" in text


def test_the_figure_shows_one_misled_face_per_expression(outcomes: dict[str, demo.Outcome]) -> None:
    small, large = demo.shown_faces()
    assert small.labels.tolist() == large.labels.tolist() == list(range(7))
    assert (small.labels != small.cues).all()
    torch.testing.assert_close((small.landmarks + 0.5) * 3, large.landmarks + 0.5, rtol=0, atol=1e-2)
    figure = demo.draw(outcomes)
    rows = [axes.get_ylabel() for axes in figure.axes[::7]]
    assert rows == ["test face", "landmark heatmap", "cross-entropy alone", "with PAL"]
    assert [axes.get_title() for axes in figure.axes[:7]] == list(EXPRESSIONS)


def test_the_command_prints_both_methods_and_writes_the_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "SEEDS", (5,))
    monkeypatch.setattr(demo, "TEST_FACES", 60)
    output = tmp_path / "demo.png"
    assert cli.main(["demo", "--output", str(output), "--faces", "20", "--epochs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "\n1 epoch, seeds 5, one CPU thread" in printed
    assert "cross-entropy alone" in printed
    assert "with PAL" in printed
    assert str(output) in printed
    assert output.read_bytes().startswith(b"\x89PNG")


def test_an_unwritable_figure_is_refused_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--output", str(tmp_path / "demo.doc")]) == 2
    assert "must end in one of" in capsys.readouterr().err

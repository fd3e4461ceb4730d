"""The sweep: it runs every combination once, resumes, and computes statistics equal to SciPy's."""

from __future__ import annotations

import csv
import math

import pytest

pytest.importorskip("accelerate", reason="accelerate is not installed (extra train)")

from support.small_training import SMALL, quiet

from pal_fast import cli
from pal_fast.training import TrainingConfig, sweep, train
from pal_fast.training.sweep_plan import Condition, Plan, Run
from pal_fast.training.sweep_table import holm, markdown, rows
from pal_fast.training.sweeping import Swept, configs

stats = pytest.importorskip("scipy.stats", reason="the sweep's statistics need SciPy")

BASE = TrainingConfig(**SMALL | {"epochs": 1, "gallery": 0, "root": "count=32,test_count=14,size=32"})
PLAN = Plan(("grad_input",), ("mean", "half"), ("body",), (1.0,), (0, 1))


def result(accuracy: float, alignment: float = 0.5) -> dict:
    return {
        "accuracy": accuracy,
        "balanced_accuracy": accuracy - 0.1,
        "cross_entropy": 1.0,
        "alignment": {"a": {"pearson": alignment}, "b": {"pearson": None}},
    }


def test_every_combination_is_planned_once_with_its_baseline():
    plan = Plan(("grad", "grad_input"), ("mean", "half", "all"), ("body", "head.0"), (0.1, 1.0), (0, 1, 2))
    made = configs(BASE, plan)
    assert len(made) == 3 * (1 + 2 * 3 * 2 * 2)
    assert len({run.name for run in made}) == len(made)
    assert [run.seed for run in made] == sorted(run.seed for run in made)
    for run, config in made.items():
        assert config.seed == run.seed
        assert config.weight == run.condition.weight
        if run.condition.weight:
            assert config.layer == (run.condition.layer,)
            assert (config.attribution, config.channels) == (run.condition.attribution, run.condition.channels)
        else:
            assert config.layer == ("body", "head.0")


def test_statistics_equal_scipys(seed):
    base, better = [0.5, 0.55, 0.52, 0.58], [0.61, 0.6, 0.66, 0.63]
    condition = Condition("grad", "mean", "a", 1.0)
    results = {Run(Condition(), k): result(value, 0.2) for k, value in enumerate(base)}
    results |= {Run(condition, k): result(value, 0.7) for k, value in enumerate(better)}
    results |= {Run(condition, 9): result(0.9, 0.7)}  # its seed has no baseline: in the mean, not in the test
    plain, row = rows(results)
    assert (plain.seeds, row.seeds) == (4, 5)
    test = stats.ttest_rel(better, base)
    assert row.p == pytest.approx(test.pvalue)
    interval = test.confidence_interval(0.95)
    assert row.gain == pytest.approx((50 * (interval.high + interval.low), 50 * (interval.high - interval.low)))
    assert row.accuracy == pytest.approx((68.0, 100 * stats.tstd([*better, 0.9])))
    assert row.alignment == pytest.approx((0.7, 0.2))
    assert math.isnan(plain.p)


def test_holm_is_monotone_and_bounded():
    conditions = [Condition("grad", "mean", str(k), 1.0) for k in range(4)]
    p = [0.01, 0.04, 0.03, 0.005]
    made = rows({Run(Condition(), k): result(0.5 + 0.01 * k) for k in range(3)})
    template = made[0]
    tested = holm(
        [type(template)(**vars(template) | {"condition": c, "p": q}) for c, q in zip(conditions, p, strict=True)]
    )
    assert [row.p_holm for row in tested] == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_too_few_seeds_give_no_p_value():
    condition = Condition("grad", "mean", "b", 1.0)
    plain, row = rows({Run(Condition(), 0): result(0.5), Run(condition, 0): result(0.6)})
    assert row.gain[0] == pytest.approx(10)
    assert math.isnan(row.gain[1])
    assert math.isnan(row.p)
    assert math.isnan(row.alignment[0])
    text = markdown([plain, row], 2, 4)
    assert "| 50.00 |" in text
    assert "+10.00" in text
    assert "nan" not in text


def test_equal_gains_have_no_p_value():
    condition = Condition("grad", "mean", "a", 1.0)
    results = {Run(Condition(), k): result(value) for k, value in enumerate((0.54, 0.62, 0.37))}
    results |= {Run(condition, k): result(value) for k, value in enumerate((0.57, 0.65, 0.40))}
    _, row = rows(results)
    assert row.gain[0] == pytest.approx(3)
    assert math.isnan(row.p)
    assert math.isnan(row.p_holm)


def test_a_sweep_resumes_where_it_stopped(tmp_path, monkeypatch):
    lines: list[str] = []
    sweep(BASE, PLAN, tmp_path, shard=(1, 2), say=lines.append)
    assert sum(line.startswith("run ") for line in lines) == 3
    text = sweep(BASE, PLAN, tmp_path, say=lines.append).table
    assert sum(line.startswith("run ") for line in lines) == 6
    assert "6 of 6 runs are complete" in text
    assert (tmp_path / "table.md").read_text() == text
    with (tmp_path / "table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["channels"] for row in table] == ["", "mean", "half"]
    assert all(row["seeds"] == "2" for row in table)
    with (tmp_path / "runs.csv").open(newline="") as file:
        runs = list(csv.DictReader(file))
    for row in table:
        name = f"body-grad_input-{row['channels']}-w1" if row["channels"] else "baseline"
        values = [100 * float(run["accuracy"]) for run in runs if run["run"].startswith(name)]
        assert float(row["accuracy"]) == pytest.approx(sum(values) / 2)
    monkeypatch.setattr("pal_fast.training.sweeping.train", None)  # nothing is trained again
    assert sweep(BASE, PLAN, tmp_path, say=quiet).table == text


def test_the_command_runs_and_prints_the_table(tmp_path, capsys):
    base = {name: BASE.to_mapping()[name] for name in SMALL}
    words = [word for name, value in base.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    varied = ["--attribution", "grad", "--channels", "mean", "--weight", "0.5", "--seeds", "0", "1"]
    assert cli.main(["sweep", "--output", str(tmp_path), *words, *varied]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("4 runs: baseline, body-grad-mean-w0.5; seeds 0, 1\n")
    assert "run 4 of 4: body-grad-mean-w0.5-seed1" in printed
    assert (tmp_path / "table.md").read_text() in printed
    assert "4 of 4 runs are complete" in printed
    with (tmp_path / "runs.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 4


def test_a_run_that_diverges_does_not_stop_the_others(tmp_path):
    base = TrainingConfig(**BASE.to_mapping() | {"learning_rate": 1e30, "power": 0.0})
    lines: list[str] = []
    swept = sweep(base, Plan(("grad_input",), ("mean",), ("body",), (1.0,), (0,)), tmp_path, say=lines.append)
    assert "0 of 2 runs are complete" in swept.table
    assert sum("not finite" in line for line in lines) == 2
    assert len(swept.failed) == 2


def test_every_condition_is_validated_before_the_first_run(tmp_path, monkeypatch):
    monkeypatch.setattr("pal_fast.training.sweeping.train", None)  # nothing is trained
    base = TrainingConfig(**BASE.to_mapping() | {"size": 8})
    plan = Plan(("grad_input",), ("mean", "half"), ("body", "head.3", "stem"), (1.0,), (0, 1))
    with pytest.raises(ValueError, match="5 of 7 conditions cannot be trained, so no run is started") as error:
        sweep(base, plan, tmp_path / "sweep", say=quiet)
    message = str(error.value)
    assert "layer: on a step of noise, the loss at layer 'head.3' is 0 for every sample" in message
    assert "single cell" in message
    assert "'stem'" in message
    assert not (tmp_path / "sweep").exists()


def test_a_failed_run_is_marked_and_retried_by_the_next_call(tmp_path, monkeypatch):
    trained, lines = [], []

    def fails_at_half(config, output, *, say):
        if config.channels == "half":
            raise OSError("No space left on device")
        trained.append(config)
        return train(config, output, say=say)

    monkeypatch.setattr("pal_fast.training.sweeping.train", fails_at_half)
    plan = Plan(("grad_input",), ("half", "mean"), ("body",), (1.0,), (0,))
    swept = sweep(BASE, plan, tmp_path, say=lines.append)
    assert len(trained) == 2
    assert list(swept.failed.values()) == ["No space left on device"]
    assert "failed: body-grad_input-half-w1-seed0: No space left on device" in lines
    assert "| grad_input | half | body | 1 | 0 (1 failed) |" in swept.table
    assert "* failed: body-grad_input-half-w1-seed0: No space left on device" in swept.table
    with (tmp_path / "table.csv").open(newline="") as file:
        assert [row["failed"] for row in csv.DictReader(file)] == ["0", "0", "1"]
    with (tmp_path / "runs.csv").open(newline="") as file:
        assert [row["failure"] for row in csv.DictReader(file)] == ["", "", "No space left on device"]
    # Another shard without failures keeps the mark.
    assert "(1 failed)" in sweep(BASE, plan, tmp_path, shard=(1, 3), say=quiet).table
    monkeypatch.setattr("pal_fast.training.sweeping.train", train)
    swept = sweep(BASE, plan, tmp_path, say=quiet)
    assert swept.failed == {}
    assert "failed" not in swept.table
    assert "3 of 3 runs are complete" in swept.table


def test_runs_with_other_options_in_the_same_folder_are_refused_and_left_out_of_the_table(tmp_path):
    sweep(BASE, PLAN, tmp_path, shard=(1, 6), say=quiet)
    other = TrainingConfig(**BASE.to_mapping() | {"epochs": 2})
    with pytest.raises(ValueError, match=r"baseline-seed0 holds a run with other options .*epochs: 1, 2"):
        sweep(other, PLAN, tmp_path, say=quiet)


def test_an_interrupted_sweep_leaves_its_tables(tmp_path, monkeypatch):
    def interrupted(config, output, *, say):
        if config.weight:
            raise KeyboardInterrupt
        return train(config, output, say=say)

    monkeypatch.setattr("pal_fast.training.sweeping.train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(BASE, PLAN, tmp_path, say=quiet)
    assert "1 of 6 runs are complete" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize("weights", [(0.0,), (1.0, -0.5)])
def test_weights_must_be_positive(weights):
    with pytest.raises(ValueError, match=rf"weights must be above 0, got {min(weights):g}; the baseline is always run"):
        Plan(weights=weights)


def test_with_several_processes_a_failure_of_one_ends_the_sweep(tmp_path, monkeypatch):
    """The others would wait for it in a collective operation and hang."""

    def fails(config, output, *, say):
        raise OSError("No space left on device")

    monkeypatch.setattr("pal_fast.training.sweeping.train", fails)
    monkeypatch.setattr("pal_fast.training.machine.is_alone", lambda: False)
    with pytest.raises(OSError, match="No space left"):
        sweep(BASE, PLAN, tmp_path, say=quiet)


def test_the_command_exits_with_status_1_if_a_run_failed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pal_fast.training.sweeping.sweep", lambda *given, **more: Swept("the table\n", {None: "why"}))
    assert cli.main(["sweep", "--data", "drawn", "--model", "small", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().out == "the table\n"


def test_the_command_refuses_meaningless_arguments(tmp_path, capsys):
    words = ["sweep", "--data", "drawn", "--output", str(tmp_path / "sweep")]
    for more, expected in (
        (["--weight", "0", "1"], "the baseline is always run"),
        (["--seeds", "1", "1"], "seeds must hold each value once"),
        (["--shard", "0/4"], "--shard must be i/n"),
        (["--shard", "5/4"], "--shard must be i/n"),
        (["--shard", "one"], "got 'one'"),
        (["--model", "alexnet"], "layer must be named"),
    ):
        assert cli.main([*words, *more]) == 2
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()

"""A sweep's folder over several calls: complete runs stay in the tables, whatever a later call asks for."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest

pytest.importorskip("accelerate", reason="accelerate is not installed (extra train)")
pytest.importorskip("scipy.stats", reason="the sweep's statistics need SciPy")

from support.small_training import SMALL, quiet

from pal_fast.training import TrainingConfig, sweep, train
from pal_fast.training.sweep_plan import Plan

BASE = TrainingConfig(**SMALL | {"epochs": 1, "gallery": 0, "root": "count=32,test_count=14,size=32"})


def plan(**more):
    return Plan(**{"attributions": ("grad_input",), "channels": ("mean",), "layers": ("body",), "seeds": (0,)} | more)


def table(folder, name="table.csv"):
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_call_with_fewer_conditions_and_more_seeds_keeps_existing_runs(tmp_path):
    sweep(BASE, plan(channels=("mean", "half"), seeds=(0, 1)), tmp_path, say=quiet)
    before = {row["channels"]: row for row in table(tmp_path)}
    lines: list[str] = []
    later = sweep(BASE, plan(seeds=(0, 2)), tmp_path, say=lines.append)
    assert any(
        line.startswith(
            "the tables also include 4 runs of earlier calls: baseline-seed1, body-grad_input-half-w1-seed0"
        )
        for line in lines
    )
    after = {row["channels"]: row for row in table(tmp_path)}
    assert {channels: row["seeds"] for channels, row in after.items()} == {"": "3", "mean": "3", "half": "2"}
    assert after["half"]["accuracy"] == before["half"]["accuracy"]
    assert after["half"]["p"] == before["half"]["p"]
    assert len(table(tmp_path, "runs.csv")) == 8
    assert "8 of 8 runs are complete" in later.table
    # Holm's correction is over both conditions, whichever call trained them.
    for number, place in enumerate(sorted((tmp_path / "runs").glob("*/result.json"))):
        gain = 0 if place.parent.name.startswith("baseline") else 0.1 + 0.01 * number
        place.write_text(json.dumps(json.loads(place.read_text()) | {"accuracy": 0.5 + gain}))
    text = sweep(BASE, plan(seeds=(0, 2)), tmp_path, say=quiet).table
    assert "the number of conditions in this table" in text
    smallest, largest = sorted((row for row in table(tmp_path) if row["p"]), key=lambda row: float(row["p"]))
    assert float(smallest["p_holm"]) == pytest.approx(2 * float(smallest["p"]))
    assert float(largest["p_holm"]) == pytest.approx(max(float(largest["p"]), 2 * float(smallest["p"])))


def test_a_failure_in_an_earlier_call_stays_marked(tmp_path, monkeypatch):
    def fails_at_half(config, output, *, say):
        if config.channels == "half":
            with pytest.raises(KeyboardInterrupt):
                train(config, output, say=_interrupt)
            raise OSError("No space left on device")
        return train(config, output, say=say)

    monkeypatch.setattr("pal_fast.training.sweeping.train", fails_at_half)
    sweep(BASE, plan(channels=("mean", "half")), tmp_path, say=quiet)
    text = sweep(BASE, plan(), tmp_path, say=quiet).table
    assert "| grad_input | half | body | 1 | 0 (1 failed) |" in text
    assert "2 of 3 runs are complete" in text


def _interrupt(line):
    if line.startswith("epoch 1"):
        raise KeyboardInterrupt


def test_runs_with_other_options_are_named_and_left_out_of_the_tables(tmp_path):
    sweep(replace(BASE, learning_rate=1e-2), plan(seeds=(7,)), tmp_path, say=quiet)
    lines: list[str] = []
    sweep(BASE, plan(), tmp_path, say=lines.append)
    reported = [line for line in lines if line.startswith("not in the tables: ")]
    assert [line.split(": ")[1] for line in reported] == ["baseline-seed7", "body-grad_input-mean-w1-seed7"]
    assert all("learning_rate: 0.01, 0.001" in line for line in reported)
    assert {row["seeds"] for row in table(tmp_path)} == {"1"}


def test_baselines_are_reused_for_fewer_layers_and_new_ones_are_measured_at_all_layers(tmp_path):
    both = plan(layers=("body", "head.0"))
    sweep(BASE, both, tmp_path, say=quiet)
    sweep(BASE, plan(layers=("head.0",), seeds=(0, 1)), tmp_path, say=quiet)
    rows = table(tmp_path)
    assert {row["layer"]: row["seeds"] for row in rows} == {"": "2", "body": "1", "head.0": "2"}
    assert all(row["baseline_alignment"] for row in rows)
    # The new baseline is measured at the same layers as the old ones, so it also serves the first plan.
    sweep(BASE, replace(both, seeds=(0, 1)), tmp_path, say=quiet)
    assert {row["seeds"] for row in table(tmp_path)} == {"2"}
    with pytest.raises(ValueError, match=r"baseline-seed0 holds a run with other options .*layer: "):
        sweep(BASE, plan(layers=("head.0", "body.3")), tmp_path, say=quiet)

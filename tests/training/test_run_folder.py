"""Checks of a run's folder when a run starts, resumes or is abandoned there."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

pytest.importorskip("accelerate", reason="accelerate is not installed (extra train)")

from support.drawn_datasets import write_rafdb
from support.small_training import SMALL, quiet, same, weights
from torch import nn

from pal_fast import cli
from pal_fast.landmarks import LandmarkSet
from pal_fast.training import TrainingConfig, networks, train
from pal_fast.training.run_folder import RunFolder
from pal_fast.training.trainer import DivergedError


def test_options_without_effect_on_results_may_change_and_paths_are_compared_resolved(tmp_path, monkeypatch):
    faces = write_rafdb(tmp_path / "faces", 16, 14)
    LandmarkSet(faces.landmarks, faces.names).save(tmp_path / "marks.npz")
    data = {"data": "rafdb", "root": str(tmp_path / "faces"), "landmarks": str(tmp_path / "marks.npz")}
    config = TrainingConfig(**SMALL | data | {"gallery": 0, "batch": 8})

    def stop(line: str) -> None:
        if line.startswith("epoch 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", say=stop)
    monkeypatch.chdir(tmp_path)
    changed = {"workers": 1, "checkpoint_every": 1, "root": "faces", "landmarks": "./marks.npz"}
    other = TrainingConfig(**config.to_mapping() | changed)
    lines: list[str] = []
    train(other, tmp_path / "run", say=lines.append)
    assert lines[0] == "resuming after epoch 1"
    train(config, tmp_path / "whole", say=quiet)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    assert json.loads(RunFolder(tmp_path / "run").config.read_text())["workers"] == 1
    write_rafdb(tmp_path / "others", 16, 14)
    for name, value in (("root", "others"), ("seed", 1), ("gallery", 1), ("device", "auto"), ("batch", 4)):
        with pytest.raises(ValueError, match=f"holds a run with other options .*: {name}: "):
            train(replace(other, **{name: value}), tmp_path / "run", say=quiet)


def test_the_root_of_drawn_faces_is_not_treated_as_a_path(tmp_path):
    config = TrainingConfig(**SMALL | {"gallery": 0, "epochs": 1}, weight=0)
    train(config, tmp_path / "run", say=quiet)
    with pytest.raises(ValueError, match=r"other options .*: root: "):
        train(replace(config, root=f"./{config.root}"), tmp_path / "run", say=quiet)


def test_a_diverged_run_reports_whether_there_is_a_checkpoint(tmp_path):
    config = TrainingConfig(**SMALL | {"gallery": 0, "learning_rate": 1e30}, power=0.0)
    with pytest.raises(DivergedError, match=r"not finite in epoch 1 by step \d: .*; there is no checkpoint yet$"):
        train(config, tmp_path / "run", say=quiet)
    assert not RunFolder(tmp_path / "run").checkpoint.exists()
    kept = replace(config, checkpoint_every=1)
    with pytest.raises(DivergedError, match=r"checkpoint\.pt is from before$"):
        train(kept, tmp_path / "kept", say=quiet)
    assert RunFolder(tmp_path / "kept").checkpoint.exists()


def test_an_unwritable_output_is_reported_before_training(tmp_path, capsys):
    (tmp_path / "file").touch()
    words = ["--data", "drawn", "--model", "small", "--output", str(tmp_path / "file" / "run")]
    for command, first in (("train", "config.json"), ("sweep", "table.md")):
        assert cli.main([command, *words]) == 2
        stderr = capsys.readouterr().err
        assert f"error: cannot write {tmp_path}/file/run/{first}: there is no folder {tmp_path}/file" in stderr


def test_a_missing_config_file_is_named_in_the_error(tmp_path, capsys):
    assert cli.main(["train", "--config", str(tmp_path / "absent.toml")]) == 2
    assert f"error: config {tmp_path}/absent.toml cannot be read: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("given", [{"batch": 1}, {"batch": 8, "accumulate": 8}])
def test_micro_batches_of_one_image_that_batch_norm_cannot_train_on_are_refused_by_option(given, tmp_path, monkeypatch):
    class OneCell(networks.SmallNetwork):
        def __init__(self, classes, size):
            super().__init__(classes, size)
            self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), *self.head[:3], nn.Flatten(), nn.Linear(64, classes))

    monkeypatch.setattr(networks, "SmallNetwork", OneCell)
    config = TrainingConfig(**SMALL | {"gallery": 0, "epochs": 1} | given)
    with pytest.raises(ValueError, match=r"batch: a BatchNorm of small sees a single value .*: use a larger batch"):
        train(config, tmp_path / "run", say=quiet)
    assert not (tmp_path / "run").exists()
    train(replace(config, batch=16, accumulate=8), tmp_path / "run", say=quiet)


def test_micro_batches_of_one_image_train_where_maps_have_enough_cells(tmp_path):
    train(TrainingConfig(**SMALL | {"gallery": 0, "epochs": 1}, accumulate=16), tmp_path / "run", say=quiet)

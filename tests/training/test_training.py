"""Training: its results, its records and its reproducibility."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("accelerate", reason="accelerate is not installed (extra train)")

import numpy as np
import torch
from support import drawn_datasets
from support.small_training import SMALL, quiet, same, weights
from torch.nn import functional as F

from pal_fast import data
from pal_fast.landmarks import LandmarkSet, write_landmarks
from pal_fast.training import TrainingConfig, train
from pal_fast.training.loading import open_split, training_batches
from pal_fast.training.networks import build_network
from pal_fast.training.randomness import SeededDataset, derive
from pal_fast.training.run_folder import RunFolder
from pal_fast.training.trained import load_network


def test_weight_zero_is_bitwise_equal_to_a_plain_loop(tmp_path, monkeypatch):
    monkeypatch.setattr("pal_fast.training.set_up.PALLoss", None)  # not even constructed
    config = TrainingConfig(**SMALL, weight=0, accumulate=2, seed=3)
    train(config, tmp_path / "run", say=quiet)

    torch.manual_seed(derive(3, "network"))
    network = build_network("small", 7, 32)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    faces = SeededDataset(open_split(config.resolved(), "train", transform=data.train_transform(32)))
    batches = training_batches(config.resolved(), faces.dataset, 0, 1)
    for epoch in range(2):
        batches.epoch = epoch
        for number, keys in enumerate(batches):
            samples = [faces[key] for key in keys]
            images = torch.stack([sample["image"] for sample in samples])
            labels = torch.tensor([sample["label"] for sample in samples])
            (F.cross_entropy(network(images), labels) / 2).backward()
            if number % 2:
                done = epoch * 4 + number // 2
                optimiser.param_groups[0]["lr"] = 1e-3 * (1 - done / 8)
                optimiser.step()
                optimiser.zero_grad()
    assert same(weights(tmp_path / "run"), network.state_dict())


def test_images_that_do_not_fill_a_step_are_left_out_of_the_epoch_and_its_metrics(tmp_path):
    config = TrainingConfig(**SMALL | {"root": "count=42,test_count=7,size=32", "batch": 8, "gallery": 0}, weight=0)
    batches = training_batches(config.resolved(), open_split(config.resolved(), "train", transform=None), 0, 1)
    left_out = []
    for epoch in range(2):
        batches.epoch = epoch
        left_out.append(set(range(42)) - {position for keys in batches for _, _, position in keys})
    assert [len(images) for images in left_out] == [2, 2]
    assert left_out[0] != left_out[1]
    train(config, tmp_path / "run", say=quiet)
    for entry in json.loads(RunFolder(tmp_path / "run").history.read_text()):
        assert 40 * entry["train"]["accuracy"] == pytest.approx(round(40 * entry["train"]["accuracy"]))


def test_a_run_is_reproduced_bitwise_from_its_config_file(tmp_path):
    first = train(TrainingConfig(**SMALL, weight=1, channels="half"), tmp_path / "a", say=quiet)
    values = json.loads((tmp_path / "a" / "config.json").read_text())
    torch.manual_seed(123)  # must have no effect
    second = train(TrainingConfig(**values | {"workers": 1}), tmp_path / "b", say=quiet)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    third = train(TrainingConfig(**values | {"seed": 1}), tmp_path / "c", say=quiet)
    assert third["cross_entropy"] != first["cross_entropy"]


def test_the_loss_moves_attributions_to_the_landmarks(tmp_path):
    lines: list[str] = []
    options = SMALL | {"root": "count=128,test_count=56,size=32", "epochs": 4}
    with_loss = train(TrainingConfig(**options, weight=3), tmp_path / "pal", say=lines.append)
    without = train(TrainingConfig(**options, weight=0), tmp_path / "plain", say=lines.append)
    aligned, plain = (result["alignment"]["body"]["pearson"] for result in (with_loss, without))
    assert aligned > plain + 0.2
    assert f"alignment {aligned:.3f}" in "\n".join(lines)


def test_the_files_and_state_that_a_run_leaves(tmp_path):
    folder = RunFolder(tmp_path / "run")
    result = train(TrainingConfig(**SMALL, validate_every=2), folder.path, say=quiet)
    history = json.loads(folder.history.read_text())
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert ["validation" in entry for entry in history] == [False, True]
    assert history[-1]["train"]["pal"] < 0
    assert result["images"] == 28
    rows = np.load(folder.predictions)
    assert result["accuracy"] == pytest.approx((rows["labels"] == rows["predictions"]).mean())
    assert result["alignment"]["body"]["pearson"] == pytest.approx(np.nanmean(rows["alignment"]), abs=1e-6)
    recalls = [(rows["predictions"] == k)[rows["labels"] == k].mean() for k in np.unique(rows["labels"])]
    assert result["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert np.array(result["confusion"]).sum() == 28
    faces = np.load(folder.gallery / "faces.npz")
    assert faces["pictures"].shape == (8, 32, 32, 3)
    assert len(set(faces["labels"].tolist())) == len(set(rows["labels"].tolist()))
    for epoch in (0, 2):
        seen = np.load(folder.gallery_epoch(epoch))
        assert seen["maps"].shape == (8, 8, 8)
        assert np.isfinite(seen["alignment"]).all()
    assert not list(folder.path.rglob("*.partial"))

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder.tensorboard)).Reload()
    assert events.Scalars("validation/accuracy")[-1].value == pytest.approx(result["accuracy"])
    assert [event.step for event in events.Scalars("train/pal")] == [4, 8]
    assert [event.step for event in events.Images("attributions")] == [0, 8]


def test_a_complete_run_is_not_repeated_and_another_does_not_overwrite_it(tmp_path):
    config = TrainingConfig(**SMALL | {"epochs": 1, "gallery": 0}, weight=0)
    result = train(config, tmp_path / "run", say=quiet)
    before = (tmp_path / "run" / "model.pt").stat().st_mtime_ns
    lines: list[str] = []
    assert train(config, tmp_path / "run", say=lines.append) == result
    assert "complete" in lines[0]
    with pytest.raises(ValueError, match=r"seed: 0, 1"):
        train(TrainingConfig(**config.to_mapping() | {"seed": 1}), tmp_path / "run")
    assert (tmp_path / "run" / "model.pt").stat().st_mtime_ns == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"holds thesis\.tex"):
        train(config, tmp_path / "other")


@pytest.mark.parametrize("as_folder", [False, True])
def test_landmarks_replaced_under_the_same_name_are_refused(tmp_path, as_folder):
    faces = drawn_datasets.write_folder(tmp_path / "faces", 21, 14, size=32)
    place = tmp_path / ("marks" if as_folder else "marks.npz")

    def save(points):
        write_landmarks(place, LandmarkSet(points, faces.names), "pts" if as_folder else "npz")

    save(faces.landmarks)
    options = {"data": "folder", "root": str(faces.root), "landmarks": str(place), "epochs": 1, "gallery": 0}
    config = TrainingConfig(**SMALL | options | {"batch": 7})
    folder = RunFolder(tmp_path / "run")
    train(config, folder.path, say=quiet)
    save(faces.landmarks + 1)
    for _ in ("complete", "stopped"):
        with pytest.raises(
            ValueError, match=r"run holds a run with other landmarks than .*/marks.* holds now: give another"
        ):
            train(config, folder.path, say=quiet)
        folder.result.unlink(missing_ok=True)
    save(faces.landmarks)
    train(config, folder.path, say=quiet)
    place.rename(tmp_path / "elsewhere")  # a complete run no longer needs them
    lines: list[str] = []
    train(config, folder.path, say=lines.append)
    assert "is complete" in lines[0]


def test_training_with_bfloat16_and_other_options_of_the_loss(tmp_path):
    config = TrainingConfig(
        **SMALL | {"epochs": 1},
        precision="bf16",
        attribution="grad",
        channel_count=0.25,
        score="cross_correlation",
        scale="mean",
        target="label",
        regions=("eyes", "mouth=2"),
        layer=("body", "head.0"),
        balanced="yes",
        prepare_head=True,
        limit=48,
    )
    result = train(config, tmp_path / "run", say=quiet)
    assert set(result["alignment"]) == {"body", "head.0"}
    assert result["images"] == 28


@pytest.mark.parametrize("model", ["resnet18", "timm:resnet10t"])
def test_library_networks_train_at_their_default_layer(model, tmp_path):
    pytest.importorskip("timm")
    options = SMALL | {"model": model, "epochs": 1, "limit": 16, "batch": 8, "gallery": 2, "pretrained": "no"}
    result = train(TrainingConfig(**options, weight=1, channels="half"), tmp_path / "run", say=quiet)
    assert result["layer"] == ["layer3"]
    assert result["images"] == 16
    assert result["alignment"]["layer3"]["pearson"] is not None
    (entry,) = json.loads(RunFolder(tmp_path / "run").history.read_text())
    assert 0 < abs(entry["train"]["pal"]) <= 1
    before = build_network(model, 7, 32).state_dict()
    after = weights(tmp_path / "run")
    assert after.keys() == before.keys()
    assert all(value.isfinite().all() for value in after.values() if value.is_floating_point())


def test_a_network_with_hardsigmoid_trains_and_the_replacement_is_reported(tmp_path):
    pytest.importorskip("timm")
    options = SMALL | {"model": "mobilenet_v3_small", "layer": ("features.8",), "limit": 16, "batch": 8, "gallery": 0}
    options |= {"epochs": 1, "pretrained": "no", "size": 64}
    lines: list[str] = []
    result = train(TrainingConfig(**options), tmp_path / "run", say=lines.append)
    assert result["alignment"]["features.8"]["pearson"] is not None
    (notice,) = [line for line in lines if "Hardsigmoid" in line]
    assert (
        notice == "9 Hardsigmoid of mobilenet_v3_small are replaced by a twice differentiable equivalent: same values"
    )
    # The saved network is the library's own, without the replacement.
    plain = build_network("mobilenet_v3_small", 7, 64)
    plain.load_state_dict(weights(tmp_path / "run"))
    assert any(type(module) is torch.nn.Hardsigmoid for module in load_network(tmp_path / "run").network.modules())
    train(TrainingConfig(**options | {"weight": 0}), tmp_path / "plain", say=lines.append)
    assert sum("Hardsigmoid" in line for line in lines) == 1


def test_a_terminal_shows_a_progress_bar_per_epoch(tmp_path, monkeypatch, capsys):
    config = TrainingConfig(**SMALL | {"epochs": 1, "gallery": 0}, weight=0)
    train(config, tmp_path / "piped", say=quiet)
    assert "epoch 1/1" not in capsys.readouterr().err
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    train(config, tmp_path / "watched", say=quiet)
    shown = capsys.readouterr().err
    assert "epoch 1/1" in shown
    assert "0/4" in shown  # later updates depend on the machine's speed


def test_a_run_that_cannot_start_leaves_no_files(tmp_path):
    for options, notice in (
        ({"batch": 96}, "batch=96 is more than the 64 training images"),
        (
            {"root": "count=2,size=32"},
            r"classes have no training image: .*; add images, or leave .*\(--classes N",
        ),
        ({"limit": 5, "batch": 4}, r"no training image: .*; add images, set limit \(--limit\) above 5, or leave"),
        ({"layer": ("boddy",)}, "did you mean 'body'"),
        ({"layer": ("boddy",), "weight": 0}, "did you mean 'body'"),
        ({"layer": ("head.5",)}, r"layer 'head.5'|head\.5"),
        ({"layer": ("head.5",), "weight": 0}, r"layer 'head.5'|head\.5"),
        ({"channel_count": 500}, "channel_count"),
        ({"model": "resnet5"}, "did you mean"),
        (
            {"model": "vit_b_32", "layer": ("encoder.layers.encoder_layer_10",), "pretrained": "no", "weight": 0},
            r"vit_b_32 does not run on images of 32 x 32 \(size\): Wrong image height",
        ),
        ({"weights": str(tmp_path / "absent.pt")}, r"absent\.pt"),
        ({"data": "rafdb", "root": None}, "root is required"),
        ({"data": "rafdb", "root": str(tmp_path / "absent")}, "absent"),
    ):
        with pytest.raises((ValueError, OSError, RuntimeError), match=notice):
            train(TrainingConfig(**SMALL | options), tmp_path / "run", say=quiet)
        assert not (tmp_path / "run").exists()


def test_partial_files_of_a_killed_run_are_removed_when_it_resumes(tmp_path):
    config = TrainingConfig(**SMALL | {"epochs": 1, "gallery": 2})
    folder = RunFolder(tmp_path / "run")
    train(config, folder.path, say=quiet)
    folder.result.unlink()
    left = [folder.path / ".model.pt.abc.partial", folder.gallery / ".epoch_0001.npz.abc.partial"]
    for path in left:
        path.touch()
    train(config, folder.path, say=quiet)
    assert not list(folder.path.rglob("*.partial"))
    assert folder.result.exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    config = TrainingConfig(**SMALL | {"learning_rate": 1e30, "power": 0.0}, weight=0, checkpoint_every=1)
    with pytest.raises(RuntimeError, match="not finite in epoch 1 by step"):
        train(config, tmp_path / "run", say=quiet)
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_layer_whose_map_has_one_cell_is_refused_before_the_folder_is_made(tmp_path):
    config = TrainingConfig(**SMALL | {"size": 8}, layer=("head.3",))
    with pytest.raises(ValueError, match=r"layer: on a step of noise, the loss at layer 'head\.3' is 0 .* single cell"):
        train(config, tmp_path / "run", say=quiet)
    assert not (tmp_path / "run" / "config.json").exists()

"""The metrics on the training images: each is a mean over the images to which it applies."""

from __future__ import annotations

import json
import warnings

import pytest

pytest.importorskip("accelerate", reason="accelerate is not installed (extra train)")

import torch
from support.small_training import SMALL, quiet
from torch import nn

from pal_fast.data import open_dataset
from pal_fast.landmarks import LandmarkSet
from pal_fast.training import TrainingConfig, networks, train
from pal_fast.training.checkpoint import resume
from pal_fast.training.recording import line
from pal_fast.training.run_folder import RunFolder, read_state, write_state


class WithoutBatchStatistics(networks.SmallNetwork):
    """Its output for an image does not depend on the rest of the batch."""

    def __init__(self, classes: int, size: int) -> None:
        super().__init__(classes, size)
        for part in (self.body, self.head):
            for name, module in part.named_children():
                if isinstance(module, nn.BatchNorm2d):
                    setattr(part, name, nn.Identity())


@pytest.fixture
def config(tmp_path, monkeypatch):
    """One face in eight is annotated, images are not augmented, and the weights do not change."""
    monkeypatch.setattr(networks, "SmallNetwork", WithoutBatchStatistics)
    faces = open_dataset("drawn", SMALL["root"], "train")
    points = faces.landmarks.clone()
    points[torch.arange(len(points)) % 8 != 0] = torch.nan
    LandmarkSet(points, faces.names).save(tmp_path / "marks.npz")
    options = {"landmarks": str(tmp_path / "marks.npz"), "epochs": 1, "gallery": 0, "learning_rate": 1e-20}
    return TrainingConfig(**SMALL | options, augment=False, weight=2)


def train_metrics(config, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(config, folder, say=quiet)
    (entry,) = json.loads(RunFolder(folder).history.read_text())
    return entry["train"]


def test_pal_is_the_mean_over_the_annotated_images_for_any_split_of_the_batch(config, tmp_path):
    found = {
        parts: train_metrics(TrainingConfig(**config.to_mapping() | {"accumulate": parts}), tmp_path / f"{parts}")
        for parts in (1, 4, 16)
    }
    assert found[1]["pal"] == pytest.approx(found[4]["pal"], rel=1e-5) == pytest.approx(found[16]["pal"], rel=1e-5)
    assert abs(found[1]["pal"]) > 0.01
    assert found[1]["cross_entropy"] == pytest.approx(found[16]["cross_entropy"], rel=1e-5)
    # With batches of one image, the figure is the mean of the losses of the steps on annotated images.
    alone = train_metrics(TrainingConfig(**config.to_mapping() | {"batch": 1}), tmp_path / "alone")
    assert alone["pal"] == pytest.approx(found[1]["pal"], rel=1e-5)


def test_an_epoch_without_an_annotated_image_has_no_pal_figure(config, tmp_path):
    entry = {"epoch": 1, "seconds": 1.0, "train": {"cross_entropy": 1.0, "pal": None, "accuracy": 0.5}}
    assert "PAL" not in line(entry, 2, ())
    one = open_dataset("drawn", SMALL["root"], "train")
    points = torch.full_like(one.landmarks, torch.nan)
    points[5] = one.landmarks[5]
    LandmarkSet(points, one.names).save(tmp_path / "one.npz")
    # 64 images in batches of 60: four are left out, and for some seed the annotated image is one of them.
    for seed in range(60):
        changed = {"landmarks": str(tmp_path / "one.npz"), "batch": 60, "seed": seed}
        config = TrainingConfig(**config.to_mapping() | changed)
        order = torch.randperm(64, generator=torch.Generator().manual_seed(_epoch_seed(seed))).tolist()
        if 5 in order[60:]:
            break
    assert train_metrics(config, tmp_path / "run")["pal"] is None


def _epoch_seed(seed):
    from pal_fast.training.randomness import derive

    return derive(seed, "order", 0)


def test_a_checkpoint_with_other_metrics_is_refused_by_name(config, tmp_path):
    train_metrics(config, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    state = read_state(folder.checkpoint, "checkpoint")
    write_state(folder.checkpoint, state | {"sums": state["sums"][:4]})
    with pytest.raises(ValueError, match=r"checkpoint\.pt was written by a version of pal_fast with other fig"):
        resume(folder, nn.Identity(), None, None, 1)

"""Training and evaluation on JPEG files in the layouts and landmark formats of the public data sets."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest

pytest.importorskip("accelerate", reason="accelerate is not installed (extra train)")

import torch
from support import drawn_datasets
from support.small_training import SMALL, quiet

from pal_fast import cli
from pal_fast.landmarks import LandmarkSet, write_landmarks
from pal_fast.landmarks.boxes import box_finder
from pal_fast.landmarks.extraction import extract
from pal_fast.landmarks.fan import FaceAligner
from pal_fast.landmarks.fan_geometry import window_of
from pal_fast.training import TrainingConfig, train
from pal_fast.training.loading import EpochBatches, open_split
from pal_fast.training.run_folder import RunFolder
from pal_fast.training.trained import evaluate

OPTIONS = {name: value for name, value in SMALL.items() if name not in ("data", "root")} | {"epochs": 1, "gallery": 4}


def rafdb_with_a_dump(root):
    drawn_datasets.write_row_column(root / "dump", drawn_datasets.write_rafdb(root, 40, 14))
    return {"data": "rafdb", "landmarks": str(root / "dump")}


def affectnet_small(root):
    drawn_datasets.write_affectnet_small(root, 40, 14)
    return {"data": "affectnet", "classes": 7}


def affectnet_full(root):
    drawn_datasets.write_affectnet_full(root, 40, 14)
    return {"data": "affectnet", "classes": 7}


def folder_with_landmarks(root):
    written = drawn_datasets.write_folder(root, 40, 14)
    write_landmarks(root / "landmarks.npz", LandmarkSet(written.landmarks, written.names))
    return {"data": "folder", "landmarks": str(root / "landmarks.npz"), "regions": ("eyes", "mouth")}


def ferplus_without_landmarks(root):
    drawn_datasets.write_ferplus(root, 40, 14)
    return {"data": "ferplus", "classes": 7, "weight": 0.0}


@pytest.mark.parametrize(
    "write", [rafdb_with_a_dump, affectnet_small, affectnet_full, folder_with_landmarks, ferplus_without_landmarks]
)
def test_each_layout_trains_and_is_evaluated_without_landmarks(write, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    config = TrainingConfig(**OPTIONS | {"root": str(root)} | write(root))
    result = train(config, tmp_path / "run", say=quiet)
    assert result["images"] == 14
    assert bool(result["alignment"]) == bool(config.weight)
    if config.landmarks:
        config_landmarks = root / "elsewhere"
        type(root)(config.landmarks).rename(config_landmarks)
    found = evaluate(tmp_path / "run", workers=0, device="cpu", say=quiet)
    assert found.confusion.tolist() == result["confusion"]
    kept = json.loads(RunFolder(tmp_path / "run").config.read_text())
    assert kept["balanced"] == ("yes" if config.data == "affectnet" else "no")


def test_balanced_sampling_draws_every_class_about_equally_often(tmp_path):
    drawn_datasets.write_affectnet_small(tmp_path, 40, 14)
    config = TrainingConfig(**OPTIONS, data="affectnet", root=str(tmp_path), classes=7).resolved()
    dataset = open_split(config, "train", transform=None)
    batches = EpochBatches(dataset, 0, 16, 1, True, 0, 1)
    counts = torch.zeros(7)
    orders = []
    for epoch in range(200):
        batches.epoch = epoch
        orders.append(batches.order())
        counts += dataset.labels[torch.tensor(orders[-1])].bincount(minlength=7)
    assert orders[0] != orders[1]
    shares = counts / counts.sum()
    assert (shares - 1 / 7).abs().max() < 0.02
    assert dataset.class_counts.float().std() > 1


def test_processes_split_each_step_without_overlap():
    dataset = torch.utils.data.TensorDataset(torch.arange(50))
    for processes, accumulate in ((1, 1), (2, 1), (2, 2), (1, 4)):
        parts = [
            list(EpochBatches(dataset, 3, 16, accumulate, False, process, processes)) for process in range(processes)
        ]
        steps = [
            [key for part in parts for batch in part[step * accumulate : (step + 1) * accumulate] for key in batch]
            for step in range(3)
        ]
        whole = list(EpochBatches(dataset, 3, 16, 1, False, 0, 1))
        assert [sorted(step) for step in steps] == [sorted(batch) for batch in whole]
        resumed = EpochBatches(dataset, 3, 16, accumulate, False, 0, processes, first_step=2)
        assert list(resumed) == parts[0][2 * accumulate :]
        assert len(resumed) == accumulate


def test_bad_data_fails_with_a_one_line_message_and_leaves_no_files(tmp_path, capsys):
    root = tmp_path / "data"
    drawn_datasets.write_rafdb(root, 40, 14)
    absent = [root / f"Image/aligned/train_{number:05d}_aligned.jpg" for number in (3, 7, 11, 19, 23, 29, 31)]
    for path in absent:
        path.unlink()
    words = ["train", "--data", "rafdb", "--root", str(root), "--model", "small", "--size", "32", "--device", "cpu"]
    assert cli.main([*words, "--output", str(tmp_path / "run")]) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("pal-fast train: error: ")
    assert "of 40 images 7 absent" in stderr
    assert absent[0].name in stderr
    assert absent[-1].name not in stderr
    assert not (tmp_path / "run").exists()
    short = [
        "--epochs",
        "1",
        "--batch",
        "8",
        "--workers",
        "0",
        "--gallery",
        "0",
        "--weight",
        "0",
        "--bad-images",
        "skip",
    ]
    with pytest.warns(UserWarning, match="7 absent"):
        assert cli.main([*words, *short, "--output", str(tmp_path / "run")]) == 0


def test_a_loss_without_landmarks_is_refused_with_a_remedy(tmp_path, capsys):
    root = tmp_path / "data"
    drawn_datasets.write_folder(root, 40, 14)
    words = ["train", "--data", "folder", "--root", str(root), "--model", "small", "--size", "32", "--device", "cpu"]
    assert cli.main([*words, "--output", str(tmp_path / "run")]) == 2
    assert "pal-fast landmarks" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


class KnownFaces:
    """Stub for face-alignment: returns heatmaps of the images' known landmarks, in the order of the images' names."""

    def __init__(self, landmarks: torch.Tensor) -> None:
        window = window_of((0, 0, 100, 100))
        shares = (landmarks + 0.5 - torch.tensor([window.x, window.y])) / window.side + 0.5
        centres = torch.arange(64) + 0.5
        x, y = (64 * shares[..., axis, None, None] for axis in (0, 1))
        self.heatmaps = torch.exp(-((centres - x) ** 2 + (centres[:, None] - y) ** 2) / 3)
        self.done = 0
        self.face_detector = SimpleNamespace(reference_scale=195)

    def face_alignment_net(self, crops: torch.Tensor) -> list[torch.Tensor]:
        self.done += len(crops)
        return [self.heatmaps[self.done - len(crops) : self.done]]


def test_training_on_landmarks_extracted_from_rafdb(tmp_path):
    root = tmp_path / "data"
    written = drawn_datasets.write_rafdb(root, 40, 14)
    shutil.rmtree(root / "Annotation")
    order = sorted(range(54), key=lambda row: written.names[row])
    aligner = FaceAligner(box_finder("full"), flip=False, package=KnownFaces(written.landmarks[order]))
    extract(root / "Image" / "aligned", tmp_path / "m.npz", aligner, batch=8)
    options = OPTIONS | {"data": "rafdb", "root": str(root), "landmarks": str(tmp_path / "m.npz"), "regions": ("eyes",)}
    config = TrainingConfig(**options)
    dataset = open_split(config, "train", transform=None)
    torch.testing.assert_close(dataset.landmarks, written.landmarks[:40], rtol=0, atol=0.05)
    result = train(config, tmp_path / "run", say=quiet)
    assert result["alignment"]["body"]["pearson"] is not None
    assert result["undefined"]["body"] < 14


def test_regions_on_landmarks_of_another_scheme_are_refused_before_writing_any_file(tmp_path):
    drawn_datasets.write_rafdb(tmp_path / "data", 40, 14)
    options = OPTIONS | {"data": "rafdb", "root": str(tmp_path / "data"), "regions": ("eyes",)}
    with pytest.raises(ValueError, match=r"regions belong to the 68-point scheme, .* rafdb hold 37"):
        train(TrainingConfig(**options), tmp_path / "run", say=quiet)
    assert not (tmp_path / "run").exists()
    result = train(TrainingConfig(**options | {"regions": ()}), tmp_path / "run", say=quiet)
    assert result["alignment"]["body"]["pearson"] is not None


@pytest.mark.parametrize("kind", ["file", "annotation"])
def test_a_test_split_without_landmarks_is_validated_without_alignment_metrics(kind, tmp_path):
    """Landmarks are privileged: only training needs them."""
    root = tmp_path / "data"
    if kind == "file":
        written = drawn_datasets.write_folder(root, 40, 14)
        write_landmarks(root / "m.npz", LandmarkSet(written.landmarks, written.names).select(range(40)))
        options = {"data": "folder", "landmarks": str(root / "m.npz")}
    else:
        drawn_datasets.write_rafdb(root, 40, 14)
        for path in (root / "Annotation").rglob("test_*"):
            path.unlink()
        options = {"data": "rafdb"}
    config = TrainingConfig(**OPTIONS | {"root": str(root)} | options)
    with pytest.warns(UserWarning, match="no alignment is measured on the test split: .*14 images"):
        result = train(config, tmp_path / "run", say=quiet)
    assert result["images"] == 14
    assert result["alignment"] == {}
    history = json.loads(RunFolder(tmp_path / "run").history.read_text())
    assert 0 < abs(history[-1]["train"]["pal"]) <= 1

"""Every layout, written to files exactly as in the data set: labels, classes, landmarks and pixels."""

from __future__ import annotations

import csv
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pal_fast.data import FaceDataset, open_dataset
from pal_fast.landmarks import LandmarkSet

pytest.importorskip("PIL")

from support import drawn_datasets
from support.drawn_datasets import Written

pytestmark = pytest.mark.filterwarnings("ignore:.*classes without images")

TRAIN, TEST = 10, 5
WRITERS: dict[str, tuple[str, Callable[..., Written]]] = {
    "rafdb": ("rafdb", drawn_datasets.write_rafdb),
    "affectnet-small": ("affectnet", drawn_datasets.write_affectnet_small),
    "affectnet-full": ("affectnet", drawn_datasets.write_affectnet_full),
    "ferplus-folders": ("ferplus", drawn_datasets.write_ferplus),
    "ferplus-one-list": (
        "ferplus",
        lambda root, *a, **k: drawn_datasets.write_ferplus(root, *a, per_folder=False, **k),
    ),
    "folder": ("folder", drawn_datasets.write_folder),
}


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Written]:
    return {
        layout: write(tmp_path_factory.mktemp(layout), TRAIN, TEST, seed=5) for layout, (_, write) in WRITERS.items()
    }


def expressions(dataset: FaceDataset) -> dict[str, str]:
    return {name: dataset.classes[label] for name, label in zip(dataset.names, dataset.labels.tolist(), strict=True)}


@pytest.mark.parametrize("layout", WRITERS)
def test_images_and_labels_are_read_from_every_layout(layout: str, trees: dict[str, Written]) -> None:
    written = trees[layout]
    for split, rows in (("train", slice(0, TRAIN)), ("test", slice(TRAIN, None))):
        dataset = open_dataset(WRITERS[layout][0], written.root, split)
        assert expressions(dataset) == dict(zip(written.names[rows], written.expressions[rows], strict=True))
        assert len(dataset) == len(written.names[rows])
        sample = dataset[3]
        assert set(sample) == {"image", "label", "landmarks", "index"}, "no heatmap is made on the loader"
        assert sample["label"] == int(dataset.labels[3])
        assert sample["index"] == 3
        assert sample["image"].shape[0] == 3
        assert sample["image"].dtype == torch.float32
        assert 0 <= sample["image"].min() < sample["image"].max() <= 1
        assert sample["landmarks"].shape == (dataset.landmark_count, 2)


OWN: dict[str, int] = {"rafdb": 37, "affectnet-small": 68, "affectnet-full": 68}


@pytest.mark.parametrize("layout", OWN)
def test_a_data_sets_own_landmarks_are_in_pixels_of_the_image_read(layout: str, trees: dict[str, Written]) -> None:
    written = trees[layout]
    dataset = open_dataset(WRITERS[layout][0], written.root, "train")
    assert dataset.landmark_count == OWN[layout]
    wanted = dict(zip(written.names, written.landmarks[:, : OWN[layout]], strict=True))
    for index, name in enumerate(dataset.names):
        points = wanted[name]
        if layout == "affectnet-full":  # this layout crops the face from the image
            boxes = dataset.images.boxes  # type: ignore[attr-defined]
            points = points - boxes[index, :2]
        torch.testing.assert_close(dataset[index]["landmarks"], points, rtol=0, atol=2e-3)


@pytest.mark.parametrize("layout", WRITERS)
def test_a_landmark_file_is_matched_by_name(layout: str, trees: dict[str, Written], tmp_path: Path) -> None:
    written = trees[layout]
    marks = LandmarkSet(written.landmarks, written.names)
    order = torch.randperm(len(marks))
    marks.select(order).save(tmp_path / "m.npz")
    dataset = open_dataset(WRITERS[layout][0], written.root, "test", landmarks=tmp_path / "m.npz")
    assert dataset.landmark_count == 68
    wanted = dict(zip(written.names, written.landmarks, strict=True))
    for index, name in enumerate(dataset.names):
        points = wanted[name]
        if layout == "affectnet-full":
            points = points - dataset.images.boxes[index, :2]  # type: ignore[attr-defined]
        torch.testing.assert_close(dataset[index]["landmarks"], points, rtol=0, atol=1e-4)


def dark_eyes(dataset: FaceDataset, right: Tensor, left: Tensor) -> float:
    """The share of eyes whose centre is darker than the skin below, a check that landmarks and pixels match."""
    darker = []
    for index in range(len(dataset)):
        image = dataset[index]["image"].mean(0)
        for middle in (right[index], left[index]):
            below = middle + 0.35 * (left[index] - right[index]).norm() * torch.tensor([0.0, 1.0])
            (x, y), (u, v) = middle.round().int().tolist(), below.round().int().tolist()
            darker.append(bool(image[y, x] < image[v, u]))
    return sum(darker) / len(darker)


@pytest.mark.parametrize("layout", [layout for layout in WRITERS if layout != "ferplus-one-list"])
def test_landmarks_lie_on_the_eyes_in_the_image(layout: str, trees: dict[str, Written]) -> None:
    written = trees[layout]
    marks = LandmarkSet(written.landmarks, written.names)
    dataset = open_dataset(WRITERS[layout][0], written.root, "train", landmarks=marks)
    points = dataset.landmarks
    assert dark_eyes(dataset, points[:, 36:42].mean(1), points[:, 42:48].mean(1)) > 0.75


def test_the_row_column_dump_matches_aligned_rafdb(trees: dict[str, Written], tmp_path: Path) -> None:
    written = trees["rafdb"]
    drawn_datasets.write_row_column(tmp_path / "dump", written)
    dataset = open_dataset("rafdb", written.root, "train", landmarks=tmp_path / "dump")
    wanted = dict(zip(written.names, written.landmarks, strict=True))
    for index, name in enumerate(dataset.names):
        torch.testing.assert_close(dataset.landmarks[index], wanted[name].round(), rtol=0, atol=0.01)


def test_affectnet_crops_by_the_box_and_its_margin(trees: dict[str, Written]) -> None:
    root = trees["affectnet-full"].root
    plain, wide = (open_dataset("affectnet", root, "train", margin=margin) for margin in (0.0, 0.25))
    for index in range(4):
        side = (64, 80)[index % 2]
        assert plain[index]["image"].shape == (3, side, side)
        first, second = plain[index], wide[index]
        shift = (second["landmarks"] - first["landmarks"]).mean(0).round().int().tolist()
        top, left = shift[1], shift[0]
        assert min(left, top) > 0
        inside = second["image"][:, top : top + side, left : left + side]
        assert torch.equal(inside, first["image"][:, : inside.shape[1], : inside.shape[2]])


@pytest.mark.parametrize("layout", ["affectnet-small", "affectnet-full"])
def test_affectnet_has_eight_classes_or_seven_without_contempt(layout: str, tmp_path: Path) -> None:
    written = WRITERS[layout][1](tmp_path, TRAIN, TEST, seed=5)
    despised = {written.names[row] for row in (2, 5, 6)}
    if layout == "affectnet-small":
        for row in (2, 5, 6):
            np.save(tmp_path / "train_set" / "annotations" / f"{row}_exp.npy", np.array("7"))
    else:
        with open(tmp_path / "training.csv", newline="") as file:
            rows = list(csv.reader(file))
        for cells in rows:
            cells[6] = "7" if cells[0] in despised else cells[6]
        drawn_datasets.write_csv(tmp_path / "training.csv", rows)
    eight, seven = (open_dataset("affectnet", tmp_path, "train", classes=count) for count in (8, 7))
    assert eight.classes == (*seven.classes, "contempt") == open_dataset("affectnet", tmp_path, "train").classes
    assert {name for name, shown in expressions(eight).items() if shown == "contempt"} == despised
    assert expressions(seven) == {name: of for name, of in expressions(eight).items() if name not in despised}
    assert int(seven.labels.max()) <= 6
    kept = [row for row, name in enumerate(eight.names) if name not in despised]
    assert torch.equal(seven.landmarks, eight.landmarks[kept])
    assert torch.equal(seven[1]["image"], eight[kept[1]]["image"])


def test_classes_are_selected_by_name_and_numbered_in_the_given_order(trees: dict[str, Written]) -> None:
    root = trees["folder"].root
    dataset = open_dataset("folder", root, "train", classes=("surprise", "anger"))
    assert dataset.classes == ("surprise", "anger")
    assert set(expressions(dataset).values()) == {"surprise", "anger"}
    assert all(f"/{expression}/" in name for name, expression in expressions(dataset).items())


def test_drawn_faces_take_options_from_root_and_keywords() -> None:
    dataset = open_dataset("drawn", "count=30,size=32,cue=1.0", "train", test_count=5)
    assert dataset[0]["image"].shape == (3, 32, 32)
    assert len(dataset) == 30
    assert dataset.landmark_count == 68
    test = open_dataset("drawn", "count=30,size=32", "test", test_count=5)
    assert len(test) == 5
    assert not torch.equal(test.landmarks, dataset.landmarks[:5])
    with pytest.raises(ValueError, match="did you mean 'count'"):
        open_dataset("drawn", "cuont=3", "train")
    with pytest.raises(ValueError, match="size of drawn must be a int, got 'big'"):
        open_dataset("drawn", "size=big", "train")


def test_landmarks_can_be_left_out(trees: dict[str, Written]) -> None:
    for name, root in (("rafdb", str(trees["rafdb"].root)), ("drawn", "count=3")):
        dataset = open_dataset(name, root, "train", landmarks=False)
        assert dataset.landmark_count == 0
        assert dataset[0]["landmarks"].shape == (0, 2)


def test_a_loader_with_workers_batches_a_data_set(trees: dict[str, Written]) -> None:
    pytest.importorskip("torchvision")
    from pal_fast.data import train_transform

    dataset = open_dataset("rafdb", trees["rafdb"].root, "train", transform=train_transform(64))
    dataset = pickle.loads(pickle.dumps(dataset))  # as spawned workers receive it
    loader = torch.utils.data.DataLoader(dataset, batch_size=8, num_workers=1)
    batches: list[dict[str, Any]] = list(loader)
    assert set(batches[0]) == {"image", "label", "landmarks", "index"}
    assert batches[0]["image"].shape == (8, 3, 64, 64)
    assert batches[0]["landmarks"].shape == (8, 37, 2)
    assert type(batches[0]["landmarks"]) is Tensor
    assert torch.equal(torch.cat([batch["label"] for batch in batches]), dataset.labels)
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(len(dataset)))

"""Implausible landmarks: none at all, all in one point, or normalised in only some of the images."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pal_fast.data import FaceDataset, open_dataset
from pal_fast.data.images import MemoryImages
from pal_fast.landmarks import LandmarkSet, read_landmark_set, write_landmarks
from pal_fast.landmarks.errors import NoLandmarksError

OPTIONS = "count=8,test_count=2,size=32"


def result_and_warnings(call: Callable[[], Any]) -> tuple[Any, list[str]]:
    """The call's result and its warnings' messages; asserts that each warning points at this file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = call()
    assert all(warning.filename == __file__ for warning in caught if "annotated images" in str(warning.message))
    return made, [str(warning.message) for warning in caught]


def drawn() -> LandmarkSet:
    return open_dataset("drawn", OPTIONS, "train").landmark_set()


@pytest.mark.parametrize("place", [(0.0, 0.0), (-1.0, -1.0), (16.0, 9.0)])
@pytest.mark.parametrize("format", ["npz", "pts", "dlib-xml"])
def test_faces_in_a_file_whose_points_coincide_are_treated_as_missing(
    tmp_path: Path, format: str, place: tuple[float, float]
) -> None:
    marks = drawn()
    marks.points[2:4] = torch.tensor(place)
    marks.points[3, 5:] = torch.nan  # a face with some points missing
    path = tmp_path / {"npz": "m.npz", "dlib-xml": "m.xml", "pts": "folder"}[format]
    write_landmarks(path, marks, format)
    read, (text,) = result_and_warnings(lambda: read_landmark_set(path))
    assert text.startswith(f"{path}: in 2 of 8 images all landmarks lie in one point, as if no face had been found")
    assert f"({read.names[2]}, {read.names[3]}): they are treated as missing (NaN)" in text
    assert read.found.tolist() == [True, True, False, False, True, True, True, True]
    kept = [0, 1, 4, 5, 6, 7]
    torch.testing.assert_close(read.points[kept], marks.points[kept], rtol=0, atol=1e-4)


def test_a_single_point_and_points_close_together_are_landmarks(tmp_path: Path) -> None:
    for points in (torch.zeros(2, 1, 2), torch.tensor([[[9.0, 9.0], [9.0, 9.001]]] * 2), torch.zeros(2, 0, 2)):
        LandmarkSet(points, ("a", "b")).save(tmp_path / "m.npz")
        read, texts = result_and_warnings(lambda: read_landmark_set(tmp_path / "m.npz"))
        assert texts == []
        assert torch.equal(read.points, points)
    alone = torch.full((1, 5, 2), torch.nan)
    alone[0, 3] = 0.0  # one known point is no evidence
    LandmarkSet(alone, ("a",)).save(tmp_path / "m.npz")
    assert result_and_warnings(lambda: read_landmark_set(tmp_path / "m.npz"))[1] == []


@pytest.mark.parametrize("given", ["LandmarkSet", "file", "FaceDataset"])
def test_faces_in_a_data_set_whose_points_coincide_are_treated_as_missing(tmp_path: Path, given: str) -> None:
    marks = drawn()
    before = marks.points.clone()
    marks.points[1] = 0.0
    marks.save(tmp_path / "m.npz")

    def opened() -> FaceDataset:
        if given == "FaceDataset":
            images = MemoryImages(torch.zeros(8, 3, 32, 32, dtype=torch.uint8))
            return FaceDataset(images, [0] * 8, ["a"], names=marks.names, landmarks=marks.points)
        return open_dataset(
            "drawn", OPTIONS, "train", landmarks=marks if given == "LandmarkSet" else tmp_path / "m.npz"
        )

    dataset, texts = result_and_warnings(opened)
    (text,) = [text for text in texts if "in one point" in text]
    assert f"in 1 of 8 images all landmarks lie in one point, as if no face had been found ({marks.names[1]})" in text
    assert dataset.landmarks[1].isnan().all()
    assert dataset.landmarks[[0, 2]].equal(before[[0, 2]])
    assert marks.points[1].eq(0).all(), "what was given is left as it is"


def test_affectnets_own_faces_whose_points_coincide_are_treated_as_missing(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    from support import drawn_datasets

    written = drawn_datasets.write_affectnet_small(tmp_path, 10, 2, size=32)
    np.save(tmp_path / "train_set" / "annotations" / "1_lnd.npy", np.zeros(136))
    dataset, texts = result_and_warnings(lambda: open_dataset("affectnet", written.root, "train"))
    assert any("affectnet's own annotation: in 1 of 10 images all landmarks lie in one point" in text for text in texts)
    assert dataset.landmarks[dataset.names.index("train_set/images/1.jpg")].isnan().all()


def half_normalised(count: int) -> Tensor:
    points = drawn().points.clone()
    points[:count] = (points[:count] + 0.5) / 32
    return points


@pytest.mark.parametrize("verify", ["quick", "none"])
@pytest.mark.parametrize("how", ["drawn", "folder", "FaceDataset"])
def test_a_minority_of_normalised_images_warns_by_name(tmp_path: Path, how: str, verify: str) -> None:
    """The warning appears once, however many functions of the package handle the landmarks."""
    points, names = half_normalised(4), drawn().names

    def opened() -> FaceDataset:
        if how == "drawn":
            return open_dataset("drawn", OPTIONS, "train", landmarks=LandmarkSet(points, names))
        if how == "folder":
            image = pytest.importorskip("PIL.Image")
            for name in names:
                path = tmp_path / "train" / "happy" / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.new("RGB", (32, 32)).save(path)
            return open_dataset("folder", tmp_path, "train", landmarks=LandmarkSet(points, names), verify=verify)
        images = MemoryImages(torch.zeros(8, 3, 32, 32, dtype=torch.uint8))
        return FaceDataset(images, [0] * 8, ["a"], names=names, landmarks=points)

    dataset, (text,) = result_and_warnings(opened)
    assert "landmarks: in 4 of 8 annotated images all landmarks lie within 3 pixels of the image's corner" in text
    assert all(name in text for name in dataset.names[:4])
    assert dataset.names[4] not in text
    assert torch.equal(dataset.landmarks, points)


def test_a_majority_of_normalised_images_is_refused() -> None:
    marks = LandmarkSet(half_normalised(5), drawn().names)
    with pytest.raises(ValueError, match="in 5 of 8 annotated images"):
        open_dataset("drawn", OPTIONS, "train", landmarks=marks)


def test_landmarks_without_any_point_are_not_reported_as_those_of_other_images() -> None:
    marks = LandmarkSet(torch.full((8, 68, 2), torch.nan), drawn().names)
    with pytest.raises(NoLandmarksError, match=r"landmarks names 8 of the 8 images .*, but holds no points: all"):
        open_dataset("drawn", OPTIONS, "train", landmarks=marks)

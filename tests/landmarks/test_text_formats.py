"""The text formats against points written out by hand, and the errors for malformed lines."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pal_fast.landmarks import LandmarkFileError, LandmarkSet, read_landmark_set, read_landmarks, write_landmarks


def test_pts_counts_pixels_from_1(tmp_path: Path) -> None:
    """In 300-W the top left pixel is (1, 1); in this package it is (0, 0)."""
    file = tmp_path / "image_001.pts"
    file.write_text("version: 1\nn_points:  3\n{\n1 1\n446.5 91.25\n-3 7\n}\n")
    marks = read_landmark_set(file)
    assert marks.names == ("image_001",)
    assert marks.points.dtype == torch.float32
    assert marks.points.tolist() == [[[0.0, 0.0], [445.5, 90.25], [-4.0, 6.0]]]


def test_a_folder_of_pts_is_read_in_name_order(tmp_path: Path) -> None:
    for name, x in (("b", 2), ("a", 1), ("sub/c", 3)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.pts").write_text(f"version: 1\nn_points: 1\n{{\n{x} 1\n}}\n")
    marks = read_landmark_set(tmp_path)
    assert marks.names == ("a", "b", "sub/c")
    assert marks.points[:, 0, 0].tolist() == [0, 1, 2]


def test_row_column_lists_y_before_x(tmp_path: Path) -> None:
    pairs = [(2 * k, -14 + k) for k in range(68)]
    file = tmp_path / "train_00001_aligned.txt"
    file.write_text("".join(f"{row}\t{column}\n" for row, column in pairs))
    points = read_landmarks(file)
    assert points.shape == (1, 68, 2)
    assert points[0].tolist() == [[column, row] for row, column in pairs]


def test_wflw_lists_are_read_with_and_without_attributes(tmp_path: Path, seed: int) -> None:
    values = np.random.default_rng(seed).uniform(-20, 400, (3, 196)).round(3)
    rows = [" ".join(map(str, row)) for row in values]
    file = tmp_path / "list_98pt.txt"
    extra = "1 2 3 4 0 0 1 0 0 0"
    file.write_text(f"{rows[0]} {extra} party/one.jpg\n{rows[1]} street/two.jpg\n{rows[2]} {extra} party/one.jpg\n")
    with pytest.warns(UserWarning, match=r"1 images have several faces, of which the first is read \(party/one\.jpg\)"):
        marks = read_landmark_set(file)
    assert marks.names == ("party/one.jpg", "street/two.jpg"), "an image with several faces keeps its first"
    np.testing.assert_array_equal(marks.points.flatten(1).numpy(), values[:2].astype(np.float32))


@pytest.mark.parametrize(
    ("name", "text", "line", "expected"),
    [
        ("a.pts", "version: 1\nn_points: 2\n{\n1 2\n3 x\n}\n", 5, "two numbers"),
        ("a.pts", "version: 1\nn_points: 2\n{\n1 2 3\n3 4\n}\n", 4, "two numbers"),
        ("a.pts", "version: 1\nn_points: 3\n{\n1 2\n3 4\n}\n", None, "3 points"),
        ("a.pts", "version: 1\npoints 3\n{\n1 2\n}\n", 2, "n_points: K"),
        ("a.pts", "version: 1\nn_points: 1\n1 2\n", None, "between lines"),
        ("a.pts", "version: 1\nn_points: 0\n{\n}\n", None, "at least one point"),
        ("a.txt", "1\t2\n3\t4\n", None, "68 lines"),
        ("a.txt", "1\t2\n3\tfour\n", 2, "row<TAB>column"),
        ("w.txt", " ".join(["1"] * 190) + " a.jpg\n", 1, "196 coordinates"),
        ("w.txt", " ".join(["1"] * 196) + " a.jpg\n" + " ".join(["1"] * 195) + " z a.jpg\n", 2, "196 coordinates"),
        ("train_1_auto_attri.txt", "1\t2\n" * 36, None, "37 rows"),
        ("train_1_auto_attri.txt", "1\t2\n" * 36 + "1\n", 37, "a point, x y"),
        ("train_1_manu_attri.txt", "1\t2\n" * 5 + "0\n1\n", None, "8 lines"),
        ("train_1_manu_attri.txt", "1\t2\n" * 5 + "0\n7\n1\n", 7, "race, a whole number from 0 to 2"),
    ],
)
def test_a_malformed_file_is_reported_with_its_line_and_what_was_expected(
    tmp_path: Path, name: str, text: str, line: int | None, expected: str
) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(LandmarkFileError, match="expected") as failure:
        read_landmarks(file)
    assert failure.value.line == line
    assert str(failure.value).startswith(f"{file}, line {line}: " if line else f"{file}: ")
    assert expected in str(failure.value)


def test_a_binary_file_is_refused_with_a_clear_message(tmp_path: Path) -> None:
    file = tmp_path / "a.pts"
    file.write_bytes(b"\xff\xd8\xff\xe0 not text")
    with pytest.raises(LandmarkFileError, match="UTF-8"):
        read_landmarks(file)


def test_several_bad_files_are_reported_in_one_summary(tmp_path: Path) -> None:
    for k in range(6):
        (tmp_path / f"{k}.pts").write_text("version: 1\nn_points: 1\n{\n1 1\n}\n" if k < 2 else "nothing\n")
    with pytest.raises(LandmarkFileError, match=r"4 that are not: .*2\.pts"):
        read_landmarks(tmp_path)


def test_files_with_different_point_counts_are_reported_in_one_summary(tmp_path: Path) -> None:
    for k in range(4):
        body = "1 1\n" * (1 + (k > 2))
        (tmp_path / f"{k}.pts").write_text(f"version: 1\nn_points: {1 + (k > 2)}\n{{\n{body}}}\n")
    with pytest.raises(LandmarkFileError, match=r"3 files with 1 \(0, 1, 2\); 1 files with 2 \(3\)"):
        read_landmarks(tmp_path)


@pytest.mark.filterwarnings("ignore:.*does not lie below the eyes")  # random points do not form a face
@pytest.mark.parametrize("format", ["npz", "pts", "row-column", "wflw", "dlib-xml"])
def test_every_format_round_trips(tmp_path: Path, format: str, generator: torch.Generator) -> None:
    count = 98 if format == "wflw" else 68
    points = torch.rand(3, count, 2, generator=generator) * 130 - 15
    points = points.round() if format == "row-column" else points
    names = ("a/one", "a/two", "b/three")
    path = tmp_path / {"npz": "m.npz", "wflw": "m.txt", "dlib-xml": "m.xml"}.get(format, "folder")
    write_landmarks(path, LandmarkSet(points, names), format)
    back = read_landmark_set(path)
    assert back.names == names
    torch.testing.assert_close(back.points, points, rtol=0, atol=1e-4)


def test_one_file_per_image_needs_complete_points_and_usable_names(tmp_path: Path) -> None:
    points = torch.zeros(2, 68, 2)
    points[1, 3] = torch.nan
    with pytest.raises(ValueError, match="missing in 1 images cannot be written: two"):
        write_landmarks(tmp_path / "out", LandmarkSet(points, ("one", "two")), "row-column")
    with pytest.raises(ValueError, match="points outside the folder"):
        write_landmarks(tmp_path / "out", LandmarkSet(points, ("one", "../two")), "pts")
    with pytest.raises(ValueError, match="would share the file"):
        write_landmarks(tmp_path / "out", LandmarkSet(points, ("one.jpg", "one.png")), "pts")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_files_is_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [2]

    def full(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    marks = LandmarkSet(torch.zeros(5, 68, 2), ("a/1", "a/2", "b/1", "b/2", "c"))
    with pytest.raises(OSError, match="No space left"):
        write_landmarks(tmp_path / "out", marks, "pts")
    assert not list(tmp_path.iterdir())

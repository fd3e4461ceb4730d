"""Files with two numbers per line: which of them is x is never guessed, except for the one known dump."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pal_fast import cli
from pal_fast.data import open_dataset
from pal_fast.faces import make_faces
from pal_fast.landmarks import LandmarkFileError, LandmarkSet, read_landmark_set, read_landmarks, write_landmarks


@pytest.fixture
def points(seed: int) -> Tensor:
    """(4, 68, 2), faces in whole pixels of 64 x 64 images."""
    return make_faces(4, 64, seed=seed).landmarks.round()


def lines(points: Tensor, separator: str, form: str) -> str:
    return "".join(separator.join(format(value, form) for value in pair) + "\n" for pair in points.tolist())


LINES = {
    "spaces": lambda points: lines(points, " ", ".0f"),
    "fractions": lambda points: lines(points, "\t", ".2f"),
    "commas": lambda points: lines(points, ",", ".0f"),
    "one line at the end": lambda points: lines(points[:67], "\t", ".0f") + lines(points[67:], " ", ".0f"),
}


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("place", ["file", "folder"])
def test_lines_that_may_be_x_y_are_refused_until_their_format_is_named(
    tmp_path: Path, points: Tensor, kind: str, place: str
) -> None:
    file = tmp_path / "marks" / "a.txt"
    file.parent.mkdir()
    file.write_text(LINES[kind](points[0]))
    path = file if place == "file" else file.parent
    with pytest.raises(LandmarkFileError) as error:
        read_landmarks(path)
    for named in ("a.txt, line ", "row<TAB>column in whole pixels", "'x-y'", "'row-column'", "format=", "--format"):
        assert named in str(error.value)
    torch.testing.assert_close(read_landmarks(path, "x-y")[0], points[0])
    with pytest.warns(UserWarning, match="does not lie below the eyes"):
        torch.testing.assert_close(read_landmarks(path, "row-column")[0], points[0].flip(-1))


def test_the_known_dump_needs_no_format_name_and_every_file_is_checked(tmp_path: Path, points: Tensor) -> None:
    for k in range(4):
        (tmp_path / f"{k}.txt").write_text(lines(points[k].flip(-1), "\t", ".0f"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(read_landmarks(tmp_path), points)
    (tmp_path / "2.txt").write_text(lines(points[2], " ", ".0f"))
    with pytest.raises(LandmarkFileError, match=r"2\.txt, line 1: expected row<TAB>column in whole pixels"):
        read_landmarks(tmp_path)


def test_x_y_lines_hold_any_number_of_points_including_missing_ones(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1.5 2\n\nnan nan\n-3\t4\n5, 6.25\n")
    marks = read_landmark_set(tmp_path / "a.txt", "x-y")
    assert marks.names == ("a",)
    np.testing.assert_array_equal(marks.points[0], np.array([[1.5, 2], [np.nan, np.nan], [-3, 4], [5, 6.25]]))
    for text, line, expected in (
        ("1 2\n3\n", 2, "1 numbers"),
        ("1 2\nx y\n", 2, "'x y'"),
        ("\n", None, "one line of x y"),
    ):
        (tmp_path / "b.txt").write_text(text)
        with pytest.raises(LandmarkFileError, match=expected) as error:
            read_landmarks(tmp_path / "b.txt", "x-y")
        assert error.value.line == line


def test_x_y_lines_round_trip(tmp_path: Path, points: Tensor) -> None:
    points[1, 5] = torch.nan
    write_landmarks(tmp_path / "folder", LandmarkSet(points + 0.25, ("a", "b", "sub/c", "sub/d")), "x-y")
    back = read_landmark_set(tmp_path / "folder", "x-y")
    assert back.names == ("a", "b", "sub/c", "sub/d")
    torch.testing.assert_close(back.points, points + 0.25, equal_nan=True)


def test_landmarks_warn_if_most_faces_lie_on_their_side(tmp_path: Path, points: Tensor) -> None:
    def warnings_with(swapped: int) -> list[str]:
        for k in range(4):
            (tmp_path / f"{k}.txt").write_text(lines(points[k].flip(-1) if k < swapped else points[k], " ", ".0f"))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            read_landmarks(tmp_path, "x-y")
        assert all(warning.filename == __file__ for warning in caught)
        return [str(warning.message) for warning in caught]

    assert warnings_with(2) == []
    (text,) = warnings_with(3)
    assert "in 3 of 4 faces the mouth (points 48-67) does not lie below the eyes (36-47)" in text
    assert "format='x-y'" in text
    assert "format='row-column'" in text


def test_a_file_of_ones_own_arrays_warns_if_x_and_y_are_exchanged(tmp_path: Path, points: Tensor) -> None:
    names = [f"{k}.jpg" for k in range(len(points))]
    LandmarkSet(points, names).save(tmp_path / "upright.npz")
    LandmarkSet(points.flip(-1), names).save(tmp_path / "exchanged.npz")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_landmarks(tmp_path / "upright.npz")
    with pytest.warns(
        UserWarning, match=r"exchanged.npz: in 4 of 4 faces .* points\[\.\.\., \[1, 0\]\] exchanges them"
    ):
        read_landmarks(tmp_path / "exchanged.npz")


def test_a_data_set_can_be_opened_with_a_named_landmark_format(tmp_path: Path) -> None:
    plain = open_dataset("drawn", "count=4,size=32", "train")
    write_landmarks(tmp_path / "m", plain.landmark_set(), "x-y")
    with pytest.raises(LandmarkFileError, match="name the format"):
        open_dataset("drawn", "count=4,size=32", "train", landmarks=tmp_path / "m")
    opened = open_dataset("drawn", "count=4,size=32", "train", landmarks=tmp_path / "m", format="x-y")
    torch.testing.assert_close(opened.landmarks, plain.landmarks, rtol=0, atol=1e-5)
    for landmarks in (None, False, plain.landmark_set()):
        with pytest.raises(ValueError, match="format applies to a landmark file, got format='x-y' and no file"):
            open_dataset("drawn", "count=4,size=32", "train", landmarks=landmarks, format="x-y")


@pytest.mark.parametrize("flag", ["--from", "--format"])
def test_convert_accepts_the_input_format_by_name(tmp_path: Path, points: Tensor, flag: str) -> None:
    (tmp_path / "a.txt").write_text(lines(points[0], " ", ".0f"))
    source, target = str(tmp_path / "a.txt"), str(tmp_path / "m.npz")
    assert cli.main(["convert", source, "-o", target]) == 2
    assert cli.main(["convert", source, "-o", target, flag, "x-y"]) == 0
    torch.testing.assert_close(read_landmarks(target)[0], points[0])

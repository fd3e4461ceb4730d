"""AffectNet's lists and .npy files; FERPlus's lists, which are read alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pal_fast.data import open_dataset
from pal_fast.landmarks import (
    LandmarkFileError,
    read_landmark_set,
    read_landmarks,
)
from pal_fast.landmarks.affectnet import COLUMNS, read_csv, read_expression

HEADER = ",".join(COLUMNS)


POINTS = ";".join(f"{k}.5;{k + 200}" for k in range(68))


ROW = f"1/a.jpg,10,20,30,40,{POINTS},3,-0.5,0.25"


@pytest.mark.parametrize("head", [f"{HEADER}\n", "", f"\ufeff{HEADER}\n"])
def test_an_affectnet_list_is_read_with_or_without_a_header(tmp_path: Path, head: str) -> None:
    file = tmp_path / "training.csv"
    nothing = "1/b.jpg,NULL,NULL,NULL,NULL,NULL,9,-2,-2"
    file.write_text(f"{head}{ROW}\n{nothing}\n", encoding="utf-8")
    first, second = read_csv(file)
    assert (first.name, first.box, first.expression) == ("1/a.jpg", (10, 20, 30, 40), 3)
    assert first.points[67].tolist() == [67.5, 267]
    assert second.box is None
    assert np.isnan(second.points).all()
    marks = read_landmark_set(file)
    assert marks.names == ("1/a.jpg", "1/b.jpg")
    assert marks.found.tolist() == [True, False]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (ROW.replace(",3,-0.5", ",12,-0.5"), "an expression from 0 to 10"),
        (ROW.replace("10,20,30,40", "10,20,30,wide"), "face_x, face_y"),
        (ROW.replace(";267", ";"), "136 numbers"),
        (ROW.replace(";267", ";y"), "facial_landmarks x;y"),
        (ROW.rsplit(",", 1)[0], "9 columns"),
    ],
)
def test_a_malformed_line_of_a_list_is_reported_by_number(tmp_path: Path, row: str, expected: str) -> None:
    file = tmp_path / "training.csv"
    file.write_text(f"{HEADER}\n{ROW}\n{row}\n")
    with pytest.raises(LandmarkFileError, match=expected) as failure:
        read_landmarks(file)
    assert str(failure.value).startswith(f"{file}, line 3: expected ")


@pytest.mark.parametrize(
    "head",
    [
        "frame,face_id,timestamp,confidence,success," + ",".join(f"x_{k}" for k in range(132)),  # OpenFace's
        "filename," + ",".join(f"x_{k},y_{k}" for k in range(68)),
    ],
)
def test_another_kind_of_csv_is_refused_with_a_remedy(tmp_path: Path, head: str) -> None:
    file = tmp_path / "faces.csv"
    file.write_text(f"{head}\n{','.join(['1'] * 137)}\n")
    with pytest.raises(LandmarkFileError, match=r"faces\.csv, line 1: expected 9 columns.*, found 137") as error:
        read_landmark_set(file)
    assert "AffectNet's list is the only .csv that can be read" in str(error.value)
    assert "LandmarkSet(points, names).save('landmarks.npz')" in str(error.value)


def test_a_malformed_line_of_an_affectnet_list_is_not_taken_for_another_kind_of_csv(tmp_path: Path) -> None:
    for head in (HEADER, ROW):
        (tmp_path / "training.csv").write_text(f"{head}\n1,2,3\n")
        with pytest.raises(LandmarkFileError, match=r"line 2: expected 9 columns, found 3$"):
            read_landmark_set(tmp_path / "training.csv")


@pytest.mark.parametrize("text", ["", "\n", f"{HEADER}\n"])
def test_a_list_without_images_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "training.csv").write_text(text)
    with pytest.raises(LandmarkFileError, match=r"expected rows of the columns subDirectory_filePath.*, found none"):
        read_landmark_set(tmp_path / "training.csv")


def _row(name: str) -> str:
    return f"{name},1,2,3,4,{';'.join(['1.5'] * 136)},3,0.1,0.2"


@pytest.mark.parametrize("which", ["affectnet", "ferplus folders", "ferplus one list"])
@pytest.mark.parametrize(
    ("broken", "line", "found"),
    [
        (b'"never closed\n' + b"x" * 200_000, None, r"a file that is not CSV \(field larger"),
        ("Müller.jpg,0,1\n".encode("latin-1"), 3, "bytes that are not UTF-8"),
    ],
)
def test_a_csv_that_is_not_utf_8_is_refused_naming_the_line(
    tmp_path: Path, which: str, broken: bytes, line: int | None, found: str
) -> None:
    good = {
        "affectnet": [_row("a.jpg"), _row("b.jpg")],
        "ferplus folders": ["a.jpg,9,0,0,0,0,0,0,0,0,1", "b.jpg,9,0,0,0,0,0,0,0,0,1"],
        "ferplus one list": [f"Training,{name}.jpg,9,0,0,0,0,0,0,0,0,1" for name in "ab"],
    }[which]
    path = tmp_path / {"affectnet": "training.csv", "ferplus folders": "FER2013Train/label.csv"}.get(
        which, "fer2013new.csv"
    )
    path.parent.mkdir(exist_ok=True)
    path.write_bytes("\n".join([*good, ""]).encode() + broken)
    place = rf"{path.name}, line {line or '[34]'}: expected .*, found {found}"
    with pytest.raises(LandmarkFileError, match=place):
        open_dataset(which.split()[0], tmp_path, "train", landmarks=False)
    if which == "affectnet":
        with pytest.raises(LandmarkFileError, match=place):
            read_landmark_set(path)


def test_non_ascii_names_are_read_from_a_list(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("\n".join([_row("Müller/ä.jpg"), "", _row("b.jpg")]), encoding="utf-8-sig")
    assert [(row.name, row.line) for row in read_csv(tmp_path / "l.csv")] == [("Müller/ä.jpg", 1), ("b.jpg", 3)]


def test_a_duplicate_image_in_a_list_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "training.csv"
    file.write_text(f"{ROW}\n{ROW}\n")
    with pytest.raises(LandmarkFileError, match=r"every image once.*1/a\.jpg"):
        read_landmarks(file)


@pytest.mark.parametrize("kind", [np.float64, np.float32, str, "S"])
@pytest.mark.parametrize("shape", [(136,), (68, 2), (1, 136)])
def test_affectnet_npy_holds_numbers_or_strings_of_any_shape(
    tmp_path: Path, kind: type | str, shape: tuple[int, ...], seed: int
) -> None:
    values = np.random.default_rng(seed).uniform(-10, 230, 136).round(2)
    folder = tmp_path / "train_set" / "annotations"
    folder.mkdir(parents=True)
    np.save(folder / "7_lnd.npy", values.astype(kind).reshape(shape))
    np.save(folder / "7_exp.npy", np.array("5").astype(kind))
    marks = read_landmark_set(tmp_path)
    assert marks.names == ("train_set/images/7",)
    np.testing.assert_allclose(marks.points.flatten().numpy(), values, rtol=1e-6)
    assert read_expression(folder / "7_exp.npy") == 5
    assert marks.find(["train_set/images/7.jpg", "val_set/images/7.jpg"]).tolist() == [0, -1]


def test_an_affectnet_npy_with_other_contents_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "1_lnd.npy", np.zeros(135))
    with pytest.raises(LandmarkFileError, match="136 numbers"):
        read_landmarks(tmp_path / "1_lnd.npy")
    np.save(tmp_path / "1_lnd.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(LandmarkFileError, match="strings that are numbers"):
        read_landmarks(tmp_path / "1_lnd.npy")
    np.save(tmp_path / "1_exp.npy", np.array("11"))
    with pytest.raises(LandmarkFileError, match="one expression from 0 to 10"):
        read_expression(tmp_path / "1_exp.npy")

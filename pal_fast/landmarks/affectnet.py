"""AffectNet's two layouts: the CSV lists of the full release, and one .npy per image of the small one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from pal_fast.landmarks.errors import LandmarkFileError
from pal_fast.landmarks.reading import read_rows
from pal_fast.landmarks.text_formats import Array

COLUMNS: Final = (
    *("subDirectory_filePath", "face_x", "face_y", "face_width", "face_height"),
    *("facial_landmarks", "expression", "valence", "arousal"),
)

#: Advice for a table that is not an AffectNet list.
_NO_OTHER: Final = (
    "; AffectNet's list is the only .csv that can be read: turn any other table into an array points (N, K, 2), (x, y) "
    "in pixels, and call `pal_fast.landmarks.LandmarkSet(points, names).save('landmarks.npz')`"
)


@dataclass(frozen=True)
class Row:
    """One line of an AffectNet CSV.

    Attributes:
        name: path of the image relative to the images' folder.
        box: (left, top, width, height) of the face in pixels of the full image; None if the list has none.
        points: (68, 2) float32, (x, y) in pixels of the full image; NaN if the list has none.
        expression: 0 to 10; 8 none, 9 uncertain, 10 no face.
        line: its line number in the file.
    """

    name: str
    box: tuple[float, float, float, float] | None
    points: Array
    expression: int
    line: int


def read_csv(path: str | Path) -> Iterator[Row]:
    """The rows of an AffectNet CSV, with or without its header, one at a time.

    Raises: LandmarkFileError with file, line and what was expected.
    """
    path = Path(path)
    understood = False
    for number, cells in read_rows(path, f"a row of the columns {','.join(COLUMNS)}"):
        if tuple(cells) == COLUMNS:
            understood = True
            continue
        if number == 1 and cells[0] == COLUMNS[0]:
            raise LandmarkFileError(path, 1, f"the columns {','.join(COLUMNS)}", ",".join(cells)[:80])
        if len(cells) != len(COLUMNS):
            wanted = f"{len(COLUMNS)} columns" + ("" if understood else f", {','.join(COLUMNS)}")
            raise LandmarkFileError(path, number, wanted, f"{len(cells)}{'' if understood else _NO_OTHER}")
        row = _row(path, number, cells)
        understood = True
        yield row


def _row(path: Path, number: int, cells: list[str]) -> Row:
    name, *box_cells = cells[:5]
    try:
        values = [float(cell) for cell in cells[5].split(";") if cell.strip() not in ("", "NULL")]
    except ValueError:
        raise LandmarkFileError(path, number, "facial_landmarks x;y;x;y;...", repr(cells[5][:40])) from None
    values = values or [math.nan] * 136
    if len(values) != 136:
        raise LandmarkFileError(path, number, "136 numbers (68 points) in facial_landmarks", f"{len(values)}")
    if not cells[6].strip().isdecimal() or int(cells[6]) > 10:
        raise LandmarkFileError(path, number, "an expression from 0 to 10", repr(cells[6]))
    box = None
    if all(cell.strip() not in ("", "NULL") for cell in box_cells):
        try:
            left, top, width, height = (float(cell) for cell in box_cells)
        except ValueError:
            raise LandmarkFileError(path, number, "face_x, face_y, face_width, face_height", repr(box_cells)) from None
        box = (left, top, width, height) if width > 0 and height > 0 else None
    points = np.asarray(values, np.float32).reshape(68, 2)
    return Row(name, box, points, int(cells[6]), number)


def load_numbers(path: str | Path) -> Array:
    """The numbers in an AffectNet .npy, which stores them as numbers or strings, in any shape. Returns flat float64."""
    path = Path(path)
    expected = "an .npy of numbers, or of strings that are numbers"
    try:
        values = np.load(path, allow_pickle=False)
        return np.asarray(values).reshape(-1).astype(np.float64)
    except (ValueError, TypeError, EOFError) as error:
        raise LandmarkFileError(path, None, expected, str(error)) from error


def read_npy(path: str | Path) -> Array:
    """`*_lnd.npy`: 136 numbers x, y, x, y, ... Returns (68, 2) float32 in pixels of the (cropped) image."""
    values = load_numbers(path)
    if len(values) != 136:
        raise LandmarkFileError(path, None, "136 numbers (68 points)", f"{len(values)}")
    return values.reshape(68, 2).astype(np.float32)


def read_expression(path: str | Path) -> int:
    """`*_exp.npy`: one whole number from 0 to 10."""
    values = load_numbers(path)
    if len(values) != 1 or values[0] not in range(11):
        raise LandmarkFileError(path, None, "one expression from 0 to 10", f"{values[:3].tolist()}")
    return int(values[0])

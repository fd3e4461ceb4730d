"""Readers of plain-text landmarks: 300-W .pts, WFLW lists, and files with one `x y` or "row<TAB>column" per line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from pal_fast.files import write_text
from pal_fast.landmarks.errors import LandmarkFileError
from pal_fast.landmarks.landmark_set import LandmarkSet
from pal_fast.landmarks.plausible import warn_of_further_faces
from pal_fast.landmarks.reading import numbers, read_lines
from pal_fast.messages import first_few

Array = np.ndarray

#: 300-W counts pixels from 1 ("the coordinates of the top left pixel are x=1, y=1", its web page says).
PTS_ORIGIN = 1.0


def read_pts(path: str | Path) -> Array:
    """300-W / menpo .pts: `version: 1`, `n_points: K`, `{`, K lines `x y`, `}`; pixels are counted from 1.

    Returns: (K, 2) float32, (x, y), integer = pixel centre (1 is subtracted).
    """
    path = Path(path)
    lines = read_lines(path)
    try:
        opening = next(i for i, (_, line) in enumerate(lines) if line.strip() == "{")
        closing = next(i for i, (_, line) in enumerate(lines) if line.strip() == "}")
    except StopIteration:
        raise LandmarkFileError(path, None, "points between lines '{' and '}'", "no such block") from None
    declared = None
    for number, line in lines[:opening]:
        match = re.match(r"n_points\s*:\s*(\d+)\s*$", line.strip(), re.IGNORECASE)
        declared = int(match[1]) if match else declared
        if not match and not re.match(r"version\s*:", line.strip(), re.IGNORECASE):
            raise LandmarkFileError(path, number, "'version: 1' or 'n_points: K'", repr(line.strip()[:60]))
    points = []
    for number, line in lines[opening + 1 : closing]:
        pair = numbers(line, path, number, "two numbers, x y")
        if len(pair) != 2:
            raise LandmarkFileError(path, number, "two numbers, x y", f"{len(pair)} numbers")
        points.append(pair)
    if declared is not None and declared != len(points):
        raise LandmarkFileError(path, None, f"{declared} points (n_points)", f"{len(points)} points")
    if not points:
        raise LandmarkFileError(path, None, "at least one point between '{' and '}'", "none")
    return (np.asarray(points) - PTS_ORIGIN).astype(np.float32)


def write_pts(path: str | Path, points: Array) -> None:
    """(K, 2), (x, y), integer = pixel centre, as a .pts; NaN stays `nan`."""
    body = "\n".join(f"{x:.6f} {y:.6f}" for x, y in np.asarray(points, np.float64) + PTS_ORIGIN)
    write_text(path, f"version: 1\nn_points: {len(points)}\n{{\n{body}\n}}\n")


#: Two whole numbers separated by a TAB and nothing else: a line as the known dump writes it.
_ROW_TAB_COLUMN = re.compile(r"\s*-?\d+\t-?\d+\s*")


def check_row_column_guess(path: str | Path) -> None:
    """Raises LandmarkFileError unless every line is row<TAB>column in whole pixels, as the known dump writes it.

    Nothing else about a line of two numbers tells which of them is x.
    """
    path = Path(path)
    for number, line in read_lines(path):
        if not _ROW_TAB_COLUMN.fullmatch(line):
            raise LandmarkFileError(
                path,
                number,
                "row<TAB>column in whole pixels, the only lines of two numbers whose order is known without a format",
                f"{line.strip()[:60]!r}: name the format, 'x-y' for lines of x and y or 'row-column' for lines of row "
                "and column (format= in Python, --format on the command line)",
            )


def read_row_column(path: str | Path) -> Array:
    """68 lines `row column`, in this order, pixels counted from 0: a known dump for aligned RAF-DB.

    The dump has a TAB and whole pixels; spaces, commas and fractions are accepted, too.

    Returns: (68, 2) float32, (x, y): the two columns swapped.
    Raises: LandmarkFileError.
    """
    return _pairs(path, "row<TAB>column", 68)[:, ::-1].copy()


def read_x_y(path: str | Path) -> Array:
    """One `x y` per line, pixels counted from 0, separated by spaces, a TAB or a comma; `nan nan` for a missing one.

    Returns: (K, 2) float32, (x, y), integer = pixel centre.
    Raises: LandmarkFileError.
    """
    return _pairs(path, "x y", None)


def _pairs(path: str | Path, columns: str, count: int | None) -> Array:
    """(K, 2) float32, the two numbers of each line; errors call them `columns`."""
    path = Path(path)
    expected = f"{columns}, two numbers"
    points = []
    for number, line in read_lines(path):
        pair = numbers(line.replace(",", " "), path, number, expected)
        if len(pair) != 2:
            raise LandmarkFileError(path, number, expected, f"{len(pair)} numbers")
        points.append(pair)
    if not points or (count is not None and len(points) != count):
        wanted = "at least one line" if count is None else f"{count} lines"
        raise LandmarkFileError(path, None, f"{wanted} of {columns}", f"{len(points)}")
    return np.asarray(points, np.float32)


def write_x_y(path: str | Path, points: Array) -> None:
    """(K, 2), (x, y), integer = pixel centre, as `x y` lines; NaN stays `nan`."""
    write_text(path, "".join(f"{x:.6f} {y:.6f}\n" for x, y in points))


def check_row_column(landmarks: LandmarkSet) -> None:
    """Raises ValueError for images with missing landmarks, which whole pixels cannot represent."""
    partial = landmarks.found & ~landmarks.points.isfinite().all(-1).all(-1)
    if partial.any():
        names = [landmarks.names[row] for row in partial.nonzero().flatten().tolist()]
        raise ValueError(
            f"row/column files hold whole pixels, so the landmarks missing in {len(names)} images cannot be "
            f"written: {first_few(names)}"
        )


def write_row_column(path: str | Path, points: Array) -> None:
    """(K, 2), (x, y), all finite, as `row<TAB>column` lines rounded to whole pixels."""
    write_text(path, "".join(f"{round(float(y))}\t{round(float(x))}\n" for x, y in points))


#: A WFLW line: 98 points, then (in the lists with rectangles and attributes) 4 corners and 6 flags, the image.
_WFLW_NUMBERS = {98 * 2: "196 coordinates", 98 * 2 + 4 + 6: "196 coordinates, 4 corners and 6 attributes"}


def read_wflw(path: str | Path) -> LandmarkSet:
    """A WFLW list: per line 98 points `x y`, optionally a rectangle and attributes, and the image's path.

    Returns: a set with K = 98, named by the images' paths. An image with several faces keeps the first; a warning
        counts these images.
    """
    path = Path(path)
    points: dict[str, list[float]] = {}
    several: dict[str, None] = {}
    expected = "196 coordinates (98 points), optionally 4 corners and 6 attributes, and an image path"
    for number, line in read_lines(path):
        words = line.split()
        if len(words) - 1 not in _WFLW_NUMBERS:
            raise LandmarkFileError(path, number, expected, f"{len(words)} words")
        values = numbers(" ".join(words[:-1]), path, number, expected)
        if words[-1] in points:
            several[words[-1]] = None
        points.setdefault(words[-1], values[: 98 * 2])
    if not points:
        raise LandmarkFileError(path, None, expected, "no line")
    warn_of_further_faces(list(several), path)
    table = torch.tensor(list(points.values()), dtype=torch.float32).view(-1, 98, 2)
    return LandmarkSet(table, tuple(points))


def write_wflw(path: str | Path, landmarks: LandmarkSet) -> None:
    """A WFLW list without rectangles and attributes. Raises ValueError unless K is 98 and no name contains spaces."""
    if landmarks.points.shape[1] != 98:
        raise ValueError(f"a WFLW list holds 98 points for each image, got {landmarks.points.shape[1]}")
    broken = next((name for name in landmarks.names if len(name.split()) != 1), None)
    if broken is not None:
        raise ValueError(f"a WFLW list is separated by spaces, so it cannot hold the name {broken!r}")
    rows = (
        " ".join(f"{value:.6f}" for value in points.flatten().tolist()) + f" {name}\n"
        for points, name in zip(landmarks.points, landmarks.names, strict=True)
    )
    write_text(path, "".join(rows))

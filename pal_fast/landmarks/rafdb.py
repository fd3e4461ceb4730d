"""RAF-DB's annotation files, and the transform from its original images to the aligned 100x100 crops.

According to the data set's readme, `auto/*_auto_attri.txt` holds 37 points of Face++, one "(x, y)" per row;
`manual/*_manu_attri.txt` holds five points (eye centres, tip of the nose, mouth corners), then gender, race and age;
all in pixels of `Image/original`. Aligned images come from "similarity transformation according to the two eye
locations and the center of mouth" and are "then resized to 100*100".
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from pal_fast.landmarks.errors import LandmarkFileError, NoLandmarksError
from pal_fast.landmarks.geometry import fit_similarity, transform_points
from pal_fast.landmarks.landmark_set import stem_of
from pal_fast.landmarks.reading import numbers, read_each, read_lines
from pal_fast.landmarks.text_formats import Array
from pal_fast.messages import first_few

ALIGNED_SIZE: Final = 100

#: Positions of the two eyes and the centre of the mouth in an aligned image, (x, y). RAF-DB does not publish them:
#: these are an assumption (0.286, 0.714 and 0.5 of the width at 0.4 and 0.714 of the height).
#: `measure_template` measures them on a local copy.
TEMPLATE: Final[tuple[tuple[float, float], ...]] = ((28.1, 39.5), (70.9, 39.5), (49.5, 70.9))

_ATTRIBUTES = (("gender", range(3)), ("race", range(3)), ("age", range(5)))


def _point(line: str, path: Path, number: int) -> list[float]:
    pair = numbers(line, path, number, "a point, x y")
    if len(pair) != 2:
        raise LandmarkFileError(path, number, "a point, x y", f"{len(pair)} numbers")
    return pair


def read_auto(path: str | Path) -> Array:
    """`*_auto_attri.txt`. Returns (37, 2) float32, (x, y) in the original image."""
    path = Path(path)
    points = [_point(line, path, number) for number, line in read_lines(path)]
    if len(points) != 37:
        raise LandmarkFileError(path, None, "37 rows of x y", f"{len(points)}")
    return np.asarray(points, np.float32)


def read_manual(path: str | Path) -> Array:
    """`*_manu_attri.txt`: five points, then gender, race and age, one per line.

    Returns: (5, 2) float32, (x, y) in the original image: the subject's right and left eye (left and right in the
        picture), nose, mouth corners.
    """
    path = Path(path)
    lines = read_lines(path)
    if len(lines) != 8:
        raise LandmarkFileError(path, None, "8 lines: 5 points, gender, race, age", f"{len(lines)}")
    points = [_point(line, path, number) for number, line in lines[:5]]
    for (number, line), (name, allowed) in zip(lines[5:], _ATTRIBUTES, strict=True):
        expected = f"{name}, a whole number from 0 to {allowed[-1]}"
        values = numbers(line, path, number, expected)
        if len(values) != 1 or values[0] not in allowed:
            raise LandmarkFileError(path, number, expected, repr(line.strip()))
    return np.asarray(points, np.float32)


def read_box(path: str | Path) -> tuple[float, float, float, float]:
    """`*_boundingbox.txt`: (left, top, right, bottom) in pixels of the original image."""
    path = Path(path)
    expected = "four numbers: left top right bottom"
    lines = read_lines(path)
    values = [value for number, line in lines for value in numbers(line, path, number, expected)]
    if len(values) != 4 or values[2] <= values[0] or values[3] <= values[1]:
        raise LandmarkFileError(path, lines[0][0] if lines else None, expected, f"{values}")
    return values[0], values[1], values[2], values[3]


def anchors(points: Tensor) -> Tensor:
    """The points that RAF-DB aligns: the eyes and the centre of the mouth. (..., 5, 2) -> (..., 3, 2)."""
    return torch.stack([points[..., 0, :], points[..., 1, :], (points[..., 3, :] + points[..., 4, :]) / 2], -2)


def aligned_transform(manual_points: Tensor, template: Tensor | None = None) -> Tensor:
    """The similarity transform from an original image to its aligned 100x100 crop.

    Args:
        manual_points: (..., 5, 2), the manual points in the original image.
        template: (3, 2), positions of eyes and mouth in an aligned image; None for `TEMPLATE`.

    Returns: (..., 2, 3), for `transform_points`.
    """
    wanted = torch.tensor(TEMPLATE) if template is None else template
    source = anchors(manual_points)
    return fit_similarity(source, wanted.to(source).expand_as(source))


def read_aligned(
    annotation: str | Path,
    names: list[str],
    kind: str = "auto",
    template: Tensor | None = None,
    *,
    absent: str = "error",
) -> Tensor:
    """The 37 (`kind="auto"`) or 5 ("manual") points of images, in pixels of their aligned crops.

    Args:
        annotation: RAF-DB's folder `Annotation`.
        names: image names, `train_00001.jpg`, `train_00001_aligned.jpg` or `train_00001`.
        template: see `aligned_transform`.
        absent: "error" raises one summary of images without annotation, "nan" leaves their points NaN.

    Returns: (N, 37 or 5, 2) float32, (x, y) in pixels of the aligned image.
    Raises: FileNotFoundError, and its subclass NoLandmarksError if no image has an annotation; LandmarkFileError.
    """
    if kind not in ("auto", "manual"):
        raise ValueError(f"kind must be 'auto' or 'manual', got {kind!r}")
    stems = [stem_of(name) for name in names]
    folder = Path(annotation)
    manual = _read_all(folder / "manual", stems, "_manu_attri.txt", read_manual, absent)
    points = _read_all(folder / "auto", stems, "_auto_attri.txt", read_auto, absent) if kind == "auto" else manual
    known = (manual.isfinite().all(-1).all(-1) & points.isfinite().all(-1).all(-1)).nonzero().flatten()
    placed = torch.full_like(points, torch.nan)
    if len(known):
        matrices = aligned_transform(manual[known].double(), template)
        placed[known] = transform_points(points[known].double(), matrices).float()
    return placed


def _read_all(folder: Path, stems: list[str], suffix: str, read: Callable[[Path], Array], absent: str) -> Tensor:
    """(N, K, 2). Absent files raise one error, or become NaN; NoLandmarksError if all are absent."""
    files = [folder / f"{stem}{suffix}" for stem in stems]
    there = [row for row, file in enumerate(files) if file.is_file()]
    lacking = [stems[row] for row in sorted(set(range(len(files))) - set(there))]
    if lacking and (absent == "error" or len(lacking) == len(files)):
        kind = NoLandmarksError if len(lacking) == len(files) else FileNotFoundError
        raise kind(f"{len(lacking)} images have no {folder}/NAME{suffix}: {first_few(lacking)}")
    tables = read_each(folder, [files[row] for row in there], read)
    if not tables:
        return torch.zeros(0, 5, 2)
    points = torch.full((len(files), *tables[0].shape), torch.nan)
    points[there] = torch.from_numpy(np.stack(tables))
    return points

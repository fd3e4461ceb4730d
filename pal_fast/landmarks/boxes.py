"""Known face boxes: the whole image, a data set's boxes, or a file next to each image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pal_fast.landmarks import affectnet, rafdb
from pal_fast.landmarks.errors import LandmarkFileError
from pal_fast.landmarks.fan import BoxFinder, FaceBox
from pal_fast.landmarks.landmark_set import NameIndex, stem_of
from pal_fast.messages import first_line


def box_finder(boxes: str) -> BoxFinder | None:
    """The box finder for a value of `--boxes`.

    Args: boxes, one of
        "detect": the detector's boxes (returns None);
        "full": the whole image, for images that are cropped faces, such as RAF-DB's aligned ones;
        "beside": a file next to each image as face-alignment's detector `folder` reads it, .npy, .t7 or .pth with a
            list of (left, top, right, bottom), of which the largest is used; no file means no face;
        an AffectNet list (.csv), or RAF-DB's folder `Annotation/boundingbox`: an image that is not in it has no face.
    """
    if boxes == "detect":
        return None
    if boxes == "full":
        return lambda name, file, image: (0.0, 0.0, float(image.shape[-1]), float(image.shape[-2]))
    if boxes == "beside":
        return lambda name, file, image: _beside(file)
    path = Path(boxes)
    if path.suffix.lower() == ".csv" and path.is_file():
        return _of_affectnet(path)
    if path.is_dir():
        return _of_rafdb(path)
    raise ValueError(
        f"boxes must be detect, full, beside, an AffectNet .csv or RAF-DB's folder boundingbox, got {boxes!r}"
    )


def _of_affectnet(path: Path) -> BoxFinder:
    known: dict[str, FaceBox | None] = {}
    for row in affectnet.read_csv(path):
        left, top, width, height = row.box or (0.0, 0.0, 0.0, 0.0)
        known[row.name] = (left, top, left + width, top + height) if row.box else None
    boxes, index = list(known.values()), NameIndex(list(known))

    def find(name: str, file: Path, image: Tensor) -> FaceBox | None:
        (row,) = index.find([name])
        return None if row < 0 else boxes[row]

    return find


def _of_rafdb(folder: Path) -> BoxFinder:
    files = {stem_of(file.name): file for file in folder.glob("*.txt")}
    if not files:
        raise FileNotFoundError(f"{folder} holds no *_boundingbox.txt")

    def find(name: str, file: Path, image: Tensor) -> FaceBox | None:
        known = files.get(stem_of(name))
        return None if known is None else rafdb.read_box(known)

    return find


def _beside(image: Path) -> FaceBox | None:
    expected = "a list of face boxes, (left, top, right, bottom)"
    for suffix in (".npy", ".t7", ".pth"):
        file = image.with_suffix(suffix)
        if not file.is_file():
            continue
        try:
            found = np.load(file) if suffix == ".npy" else torch.load(file, weights_only=True)
            table = np.asarray([np.asarray(box, np.float64)[:4] for box in found]).reshape(-1, 4)
        except Exception as error:  # a rejected pickle, a wrong shape, a truncated file
            raise LandmarkFileError(file, None, expected, first_line(error)) from error
        if not len(table):
            return None
        largest = max(table.tolist(), key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
        return largest[0], largest[1], largest[2], largest[3]
    return None

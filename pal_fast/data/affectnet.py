"""AffectNet: the full release (CSV lists and whole images) and the small one (.npy files and cropped faces)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from pal_fast.data.listing import Listing
from pal_fast.image_files import IMAGE_EXTENSIONS
from pal_fast.landmarks import affectnet
from pal_fast.landmarks.reading import read_each
from pal_fast.messages import first_few

#: Expressions 0 to 7. `classes=7` leaves contempt out. 8 to 10 (none, uncertain, no face) are never read.
CLASSES: Final = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")

#: AffectNet has no public test set; its validation set takes the place.
_FOLDERS: Final = {"train": "train_set", "test": "val_set"}
_LISTS: Final = {"train": "training.csv", "test": "validation.csv"}


def list_images(
    root: Path,
    split: str,
    *,
    own_landmarks: bool = True,
    images: str | Path | None = None,
    margin: float = 0.0,
    bad_images: str = "error",
    **_: Any,
) -> Listing:
    """The images of a split, in whichever layout `root` has.

    Args:
        images: full release only: the folder that the list's paths are relative to; None looks for it.
        margin: full release only: by what share of its width and height a face's box grows on every side.
        bad_images: "skip" leaves out, with a warning, images without a box in the full release's list.
    """
    if (folder := root / _FOLDERS[split]).is_dir():
        return _small(root, folder, own_landmarks)
    return _full(root, _list_of(root, split), own_landmarks, images, margin, bad_images)


def list_names(root: Path, split: str) -> list[str]:
    """The names of a split's images, of all expressions, without reading the images' annotations."""
    if (folder := root / _FOLDERS[split]).is_dir():
        return [file.relative_to(root).as_posix() for file in _images_in(folder)]
    return [row.name for row in affectnet.read_csv(_list_of(root, split))]


def _list_of(root: Path, split: str) -> Path:
    path = _find_list(root, _LISTS[split])
    if path is None:
        raise FileNotFoundError(
            f"neither {_FOLDERS[split]}/ nor {_LISTS[split]} under {root}: is it the folder of AffectNet?"
        )
    return path


def _images_in(folder: Path) -> list[Path]:
    return sorted(file for file in (folder / "images").iterdir() if file.suffix.lower() in IMAGE_EXTENSIONS)


def _small(root: Path, folder: Path, own_landmarks: bool) -> Listing:
    files, annotations = _images_in(folder), folder / "annotations"
    lacking = [file.name for file in files if not (annotations / f"{file.stem}_exp.npy").is_file()]
    if lacking:
        raise FileNotFoundError(f"{annotations} holds no _exp.npy for {len(lacking)} images: {first_few(lacking)}")
    labels = read_each(annotations, [annotations / f"{file.stem}_exp.npy" for file in files], affectnet.read_expression)
    kept = [(file, label) for file, label in zip(files, labels, strict=True) if label < len(CLASSES)]
    landmarks = None
    if own_landmarks and kept:
        landmarks = torch.full((len(kept), 68, 2), torch.nan)
        paths = [annotations / f"{file.stem}_lnd.npy" for file, _ in kept]
        rows = [row for row, path in enumerate(paths) if path.is_file()]
        tables = read_each(annotations, [paths[row] for row in rows], affectnet.read_npy)
        if rows:
            landmarks[rows] = torch.from_numpy(np.stack(tables))
    return Listing(
        tuple(file.relative_to(root).as_posix() for file, _ in kept),
        tuple(file for file, _ in kept),
        tuple(label for _, label in kept),
        CLASSES,
        landmarks,
    )


def _full(
    root: Path, path: Path, own_landmarks: bool, images: str | Path | None, margin: float, bad_images: str
) -> Listing:
    if not 0 <= margin <= 10:
        raise ValueError(f"margin must be from 0 to 10, as a share of the box's side, got {margin}")
    rows = [row for row in affectnet.read_csv(path) if row.expression < len(CLASSES)]
    boxless = [f"line {row.line} {row.name}" for row in rows if row.box is None]
    if boxless:
        message = f"{path}: {len(boxless)} of {len(rows)} images have no face box ({first_few(boxless)})"
        if bad_images == "error":
            raise ValueError(f"{message}; bad_images='skip' leaves them out")
        warnings.warn(f"{message}; they are left out", stacklevel=4)
        rows = [row for row in rows if row.box is not None]
    folder = _find_images(root, [row.name for row in rows[:100]]) if images is None else Path(images)
    boxes = np.zeros((len(rows), 4), np.int64)
    for index, row in enumerate(rows):
        assert row.box is not None
        left, top, width, height = row.box
        low = np.maximum(0, np.floor([left - margin * width, top - margin * height]))
        high = np.ceil([left + (1 + margin) * width, top + (1 + margin) * height])
        boxes[index] = [*low, *(high - low)]
    return Listing(
        tuple(row.name for row in rows),
        tuple(folder / row.name for row in rows),
        tuple(row.expression for row in rows),
        CLASSES,
        torch.from_numpy(np.stack([row.points for row in rows])) if own_landmarks and rows else None,
        torch.from_numpy(boxes),
    )


def _find_list(root: Path, name: str) -> Path | None:
    return next((path for pattern in (name, f"*/{name}", f"*/*/{name}") for path in sorted(root.glob(pattern))), None)


def _find_images(root: Path, names: list[str]) -> Path:
    """The folder under `root` in which most of these images are."""
    usual = ("Manually_Annotated_Images", "Manually_Annotated/Manually_Annotated_Images")
    folders = [root, *(root / name for name in usual), *(path for path in sorted(root.glob("*")) if path.is_dir())]
    return max(folders, key=lambda folder: sum((folder / name).is_file() for name in names))

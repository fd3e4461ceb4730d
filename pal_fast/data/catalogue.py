"""`open_dataset`: the data sets by name."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from pal_fast import _checks
from pal_fast.data import affectnet, drawn, ferplus, folder, listing, rafdb
from pal_fast.data.dataset import FaceDataset
from pal_fast.data.images import ImageFiles, inspect
from pal_fast.data.normalised_landmarks import check_in_pixels
from pal_fast.data.transforms import Transform
from pal_fast.landmarks import LandmarkSet, read_landmark_set
from pal_fast.landmarks.plausible import checked_set, without_coincident
from pal_fast.messages import describe

_READERS: Final[dict[str, Callable[..., listing.Listing]]] = {
    "rafdb": rafdb.list_images,
    "affectnet": affectnet.list_images,
    "ferplus": ferplus.list_images,
    "folder": folder.list_images,
}
#: Additional keyword arguments by data set.
_OPTIONS: Final[dict[str, tuple[str, ...]]] = {"rafdb": ("template",), "affectnet": ("images", "margin")}

#: Readers of the names alone, for data sets where that is much faster.
_NAMES: Final[dict[str, Callable[..., list[str]]]] = {"affectnet": affectnet.list_names}

DATASETS: Final = (*_READERS, "drawn")


def _splits(name: str) -> tuple[str, ...]:
    return ("train", "validation", "test") if name == "ferplus" else ("train", "test")


def open_dataset(
    name: str,
    root: str | os.PathLike[str],
    split: str,
    *,
    landmarks: str | os.PathLike[str] | LandmarkSet | bool | None = None,
    format: str | None = None,
    transform: Transform | None = None,
    classes: int | Sequence[str] | None = None,
    bad_images: str = "error",
    verify: str = "quick",
    **options: Any,
) -> FaceDataset:
    """Opens a split of a data set and checks it as a whole.

    Images are read as they are stored, without applying an EXIF orientation: landmark files do not say whether they
    refer to the rotated image, and those of `pal-fast landmarks` refer to the stored one.

    Args:
        name: "rafdb" (basic), "affectnet" (full release or the small one with .npy files), "ferplus", "folder" (class
            folders under train/ and test/) or "drawn" (the embedded faces, in memory).
        root: the data set's folder; for "drawn" its options, such as "count=200,size=48" or "".
        split: "train" or "test" (AffectNet: its validation set; FERPlus: PrivateTest, and "validation" for PublicTest).
        landmarks: a file or folder in any format of `pal_fast.landmarks`, or a `LandmarkSet`, in pixels of the whole
            images. None takes the data set's own: RAF-DB's 37 automatic points, AffectNet's 68, the drawn faces' 68,
            none for the others. False for none at all.
        format: format of the file or folder `landmarks`, one of `pal_fast.landmarks.FORMATS`; None guesses.
        transform: see `FaceDataset`; `train_transform` and `eval_transform` return suitable ones.
        classes: the first n classes, or the names of those to keep; AffectNet: 7 leaves contempt out. None for all.
        bad_images: "error" raises one summary of absent and unreadable images, "skip" leaves them out with a warning.
        verify: "quick" reads every image's header and the end of every JPEG and PNG, which finds files that are not
            images or are truncated, but not those damaged in the middle; "full" decodes all; "none" only checks that
            the files exist.
        **options: rafdb: `template`, see `pal_fast.landmarks.rafdb.aligned_transform`. affectnet: `images`, the folder
            that the list's paths are relative to, and `margin`, by what share of its size a face's box grows on every
            side. drawn: those of `pal_fast.data.drawn.DEFAULTS`.

    Raises: TypeError, ValueError naming the argument; FileNotFoundError, ValueError or LandmarkFileError, each listing
        every problem in one message; `pal_fast.landmarks.errors.NoLandmarksError`, a ValueError, if no image of the
        split has landmarks.
    """
    _checks.choice("name", name, DATASETS)
    _checks.choice("split", split, _splits(name))
    where = _checks.path("root", root)
    if landmarks is True or not isinstance(landmarks, (str, os.PathLike, LandmarkSet, bool, type(None))):
        wanted = "a path, a LandmarkSet, None (the data set's own) or False"
        raise TypeError(f"landmarks must be {wanted}, got {describe(landmarks)}")
    if format is not None and not isinstance(landmarks, (str, os.PathLike)):
        raise ValueError(f"format applies to a landmark file, got format={format!r} and no file or folder as landmarks")
    if name == "drawn":
        return _open_drawn(os.fspath(root), split, landmarks, format, transform, classes, options)
    for option in options:
        _checks.choice(f"an option of {name}", option, _OPTIONS.get(name, ()) or ("(none)",))
    if not where.is_dir():
        raise FileNotFoundError(f"root must be the folder of {name}, but there is none at {where}")
    everything = found = _READERS[name](where, split, own_landmarks=landmarks is None, bad_images=bad_images, **options)
    found = listing.choose_classes(found, classes)
    found, sizes = listing.check_files(found, where, verify, bad_images)
    listing.check_classes(found, where)

    def others() -> list[str]:
        return [*everything.names, *_names_of_other_splits(name, where, split, options)]

    points, source = _points(found, landmarks, format, name, others)
    if points is not None:
        check_in_pixels(points, found.names, lambda row: _size_of(found.files[row], sizes, row), source)
    if points is not None and sizes is not None:
        listing.check_inside(found, points, sizes, source)
    if points is not None and found.boxes is not None:
        points = points - found.boxes[:, None, :2]
    images = ImageFiles(found.files, found.boxes)
    return FaceDataset._of_checked(
        images, found.labels, found.classes, names=found.names, landmarks=points, transform=transform
    )


def _size_of(file: Path, sizes: Tensor | None, row: int) -> tuple[int, int]:
    """(height, width) of a file's image, from `sizes` (N, 2) if known. Raises: OSError naming the file."""
    if sizes is not None:
        height, width = sizes[row].tolist()
        return height, width
    size = inspect(file)
    if isinstance(size, str):
        raise OSError(f"{file} cannot be read as an image: {size}")
    return size


def _points(
    found: listing.Listing,
    landmarks: str | os.PathLike[str] | LandmarkSet | bool | None,
    format: str | None,
    name: str,
    others: Callable[[], Iterable[str]],
) -> tuple[Tensor | None, str]:
    """The landmarks in pixels of the whole images, and where they come from, for messages."""
    if landmarks is None:
        points, source = found.landmarks, f"{name}'s own annotation"
        if points is not None:
            points = without_coincident(points, found.names, source)
        lacking = 0 if points is None else int((~points.isfinite().all(-1).any(-1)).sum())
        if lacking:
            warnings.warn(f"{lacking} of {len(found)} images have no landmarks in {source}", stacklevel=3)
        return points, source
    if isinstance(landmarks, bool):
        return None, ""
    marks, source = _read_marks(landmarks, format)
    return listing.attach(found, marks, source, others), source


def _names_of_other_splits(name: str, where: Path, split: str, options: dict[str, Any]) -> list[str]:
    """Of the splits that are present: a copy of a data set may lack one."""
    names: list[str] = []
    for other in _splits(name):
        if other != split:
            with contextlib.suppress(FileNotFoundError):
                if name in _NAMES:
                    names += _NAMES[name](where, other)
                else:
                    names += _READERS[name](where, other, own_landmarks=False, **options).names
    return names


def _read_marks(landmarks: str | os.PathLike[str] | LandmarkSet, format: str | None) -> tuple[LandmarkSet, str]:
    if isinstance(landmarks, LandmarkSet):
        return checked_set(landmarks, "landmarks"), "landmarks"
    return read_landmark_set(os.fspath(landmarks), format), os.fspath(landmarks)


def _open_drawn(
    root: str,
    split: str,
    landmarks: str | os.PathLike[str] | LandmarkSet | bool | None,
    format: str | None,
    transform: Transform | None,
    classes: int | Sequence[str] | None,
    options: dict[str, Any],
) -> FaceDataset:
    chosen_options = drawn.read_options(root, options)
    images, labels, points, names = drawn.draw(split, chosen_options)
    made = listing.Listing(names, tuple(map(Path, names)), tuple(labels.tolist()), drawn.CLASSES, points)
    chosen = listing.choose_classes(made, classes)
    if len(chosen) < len(made):
        where = {name: row for row, name in enumerate(names)}
        images.images = images.images[torch.tensor([where[name] for name in chosen.names], dtype=torch.int64)]

    def others() -> list[str]:
        return [name for part in _splits("drawn") for name in drawn.names_of(part, chosen_options)]

    own, _ = _points(chosen, landmarks, format, "drawn", others)
    return FaceDataset(images, chosen.labels, chosen.classes, names=chosen.names, landmarks=own, transform=transform)

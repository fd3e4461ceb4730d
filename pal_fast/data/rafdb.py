"""RAF-DB, single-label subset ("basic"): `EmoLabel/list_patition_label.txt`, `Image/aligned`, `Annotation`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch

from pal_fast.data.listing import Listing
from pal_fast.landmarks.errors import LandmarkFileError, NoLandmarksError
from pal_fast.landmarks.rafdb import read_aligned
from pal_fast.landmarks.reading import read_lines

#: The labels 1 to 7, in the order of RAF-DB's readme.
CLASSES: Final = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")

LABELS: Final = "EmoLabel/list_patition_label.txt"


def find_root(root: Path) -> Path:
    """The folder that holds EmoLabel: `root` itself or its folder `basic`."""
    for folder in (root, root / "basic", root / "basic" / "basic"):
        if (folder / LABELS).is_file():
            return folder
    raise FileNotFoundError(f"no {LABELS} under {root}: is it the folder of RAF-DB's basic set?")


def list_images(
    root: Path,
    split: str,
    *,
    own_landmarks: bool = True,
    template: torch.Tensor | None = None,
    bad_images: str = "error",
    **_: Any,
) -> Listing:
    """The aligned images of a split.

    Its own landmarks are the 37 of `Annotation/auto`, mapped to the aligned images by means of the manual ones; none if
    the copy holds no `Annotation`. `template` (3, 2) is passed to `pal_fast.landmarks.rafdb.aligned_transform`.
    `bad_images` "skip" keeps images that have no annotation, without landmarks.
    """
    root = find_root(root)
    path = root / LABELS
    names, labels = [], []
    for number, line in read_lines(path):
        words = line.split()
        expected = "an image name train_* or test_* and a label from 1 to 7"
        if len(words) != 2 or words[1] not in "1234567" or not words[0].startswith(("train", "test")):
            raise LandmarkFileError(path, number, expected, repr(line.strip()[:60]))
        if words[0].startswith(split):
            names.append(f"Image/aligned/{Path(words[0]).stem}_aligned.jpg")
            labels.append(int(words[1]) - 1)
    landmarks = None
    if own_landmarks and (root / "Annotation" / "auto").is_dir():
        absent = "nan" if bad_images == "skip" else "error"
        try:
            landmarks = read_aligned(root / "Annotation", names, template=template, absent=absent)
        except NoLandmarksError:
            raise
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; bad_images='skip' keeps these images, without landmarks") from error
    return Listing(tuple(names), tuple(root / name for name in names), tuple(labels), CLASSES, landmarks)

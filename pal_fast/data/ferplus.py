"""FERPlus: ten annotators' votes for each image of FER2013, as a `label.csv` in every folder or as `fer2013new.csv`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from pal_fast.data.listing import Listing
from pal_fast.landmarks.errors import LandmarkFileError
from pal_fast.landmarks.reading import read_rows

#: The columns of votes; two more follow, unknown and NF (no face).
CLASSES: Final = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")

#: Usage in fer2013new.csv, and the folder that FERPlus's own script writes for it.
_USAGES: Final = {"train": ("Training",), "test": ("PrivateTest",), "validation": ("PublicTest",)}
_FOLDERS: Final = {"Training": "FER2013Train", "PublicTest": "FER2013Valid", "PrivateTest": "FER2013Test"}
_COLUMNS: Final = len(CLASSES) + 2


def majority(votes: list[float]) -> int | None:
    """The label that FERPlus's "majority" mode derives from ten vote counts, or None: the image is then left out.

    Single votes are dropped as outliers; the most frequent label must have more than half of the rest, and must be
    neither unknown nor no face (Barsoum et al., ICMI 2016, and their `ferplus.py`).
    """
    kept = [vote if vote > 1 else 0.0 for vote in votes]
    most = max(kept)
    if not most > sum(kept) / 2:
        return None
    label = kept.index(most)
    return label if label < len(CLASSES) else None


def list_images(root: Path, split: str, **_: Any) -> Listing:
    """The images of a split that have a majority. FERPlus has no landmarks of its own."""
    names, labels = [], []
    for usage in _USAGES[split]:
        for name, votes in _rows(root, usage):
            label = majority(votes)
            if label is not None:
                names.append(name)
                labels.append(label)
    return Listing(tuple(names), tuple(root / name for name in names), tuple(labels), CLASSES)


def _rows(root: Path, usage: str) -> list[tuple[str, list[float]]]:
    """(path relative to root, votes) of every image of a usage."""
    for base in ("", "data/"):
        folder = f"{base}{_FOLDERS[usage]}"
        path = root / folder / "label.csv"
        if path.is_file():
            return [(f"{folder}/{cells[0]}", _votes(path, number, cells)) for number, cells in _read(path)]
    path = root / "fer2013new.csv"
    if not path.is_file():
        raise FileNotFoundError(f"neither {_FOLDERS[usage]}/label.csv nor fer2013new.csv under {root}")
    where = _images_by_name(root)
    rows = []
    for number, cells in _read(path):
        if cells[0] == "Usage":
            continue
        if len(cells) != 2 + _COLUMNS:
            raise LandmarkFileError(path, number, f"Usage, Image name and {_COLUMNS} votes", f"{len(cells)} columns")
        if cells[0] == usage and cells[1]:  # images without a name were removed from FERPlus
            rows.append((where.get(cells[1], f"{_FOLDERS[usage]}/{cells[1]}"), _votes(path, number, cells[1:])))
    return rows


def _read(path: Path) -> list[tuple[int, list[str]]]:
    rows = read_rows(path, f"an image's name and {_COLUMNS} numbers of votes")
    return [(number, [cell.strip() for cell in cells]) for number, cells in rows]


def _votes(path: Path, number: int, cells: list[str]) -> list[float]:
    expected = f"an image's name, optionally its box, and {_COLUMNS} numbers of votes"
    # Some copies of label.csv hold the face's box, "(0, 0, 48, 48)", after the name.
    given = cells[2:] if len(cells) == 2 + _COLUMNS and cells[1].startswith("(") else cells[1:]
    if len(given) != _COLUMNS:
        raise LandmarkFileError(path, number, expected, f"{len(cells)} columns")
    try:
        return [float(cell) for cell in given]
    except ValueError:
        raise LandmarkFileError(path, number, expected, repr(",".join(cells)[:60])) from None


def _images_by_name(root: Path) -> dict[str, str]:
    """File name to path relative to `root`, for every file under it."""
    found: dict[str, str] = {}
    for folder, _, files in os.walk(root):
        below = Path(folder).relative_to(root)
        found.update((name, (below / name).as_posix()) for name in files)
    return found

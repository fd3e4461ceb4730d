"""`LandmarkSet`: the landmarks of many images by name, in the package's own coordinates and file format."""

from __future__ import annotations

import functools
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from pal_fast import _checks
from pal_fast.files import write_npz
from pal_fast.image_files import IMAGE_EXTENSIONS
from pal_fast.landmarks.errors import LandmarkFileError
from pal_fast.messages import first_few

#: Suffixes that annotation files append to the name of their image.
_ANNOTATION_SUFFIXES = ("_aligned", "_auto_attri", "_manu_attri", "_boundingbox", "_lnd", "_exp")


#: What numpy raises for a file that is not an .npz, is truncated, or is an .npy.
_NOT_AN_NPZ = (ValueError, TypeError, AttributeError, EOFError, OSError, KeyError, zipfile.BadZipFile, zlib.error)

#: Extensions of images and of single-image landmark files. Any other dot is part of the name.
_EXTENSIONS: Final = IMAGE_EXTENSIONS | {".gif", ".txt", ".pts", ".npy", ".json"}


def without_extension(name: str) -> str:
    """The path of an image without the extension of an image or landmark file, with forward slashes."""
    path = name.replace("\\", "/").removeprefix("./")
    stem, dot, extension = path.rpartition(".")
    return stem if stem and f"{dot}{extension}".lower() in _EXTENSIONS else path


def stem_of(name: str) -> str:
    """The name of an image without its folder, its extension and the suffixes of RAF-DB and AffectNet."""
    return _normal(name).rpartition("/")[2]


def _normal(name: str) -> str:
    """A name without extension and annotation suffix, but with its folders."""
    folder, slash, stem = without_extension(name).rpartition("/")
    for suffix in _ANNOTATION_SUFFIXES:
        stem = stem.removesuffix(suffix)
    return f"{folder}{slash}{stem}"


def _tails(name: str) -> list[str]:
    """a/b/c -> b/c, c."""
    parts = name.split("/")
    return ["/".join(parts[start:]) for start in range(1, len(parts))]


def _where_unique(names: Iterable[tuple[str, int]]) -> dict[str, int]:
    """The number paired with each name; -1 for a name that occurs more than once."""
    places: dict[str, int] = {}
    for name, place in names:
        places[name] = -1 if name in places else place
    return places


class NameIndex:
    """Finds images by name among the `names` of annotations.

    An identical name matches first. Then extensions and the suffixes of annotation files are dropped, and two names
    match if they are equal or one is the end of the other at a folder boundary (`1.jpg` and `train/happy/1.jpg`, but
    never `train/1.jpg` and `test/1.jpg`). A match must be unique both among the annotations and among the names looked
    up in the same call.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._exact = {name: row for row, name in enumerate(names)}

    @functools.cached_property
    def _by_ends(self) -> tuple[dict[str, int], dict[str, int]]:
        """Rows by normalised name, and by the tails of normalised names."""
        held = [_normal(name) for name in self._exact]
        equal = _where_unique((name, row) for row, name in enumerate(held))
        return equal, _where_unique((tail, row) for row, name in enumerate(held) for tail in _tails(name))

    def find(self, names: Iterable[str]) -> list[int]:
        """For each name, the row of the annotation that belongs to it, or -1."""
        wanted = list(names)
        rows = [self._exact.get(name, -1) for name in wanted]
        if all(row >= 0 for row in rows):
            return rows
        equal, held_ends = self._by_ends
        asked = [_normal(name) for name in wanted]
        times = Counter(asked)
        ends = Counter(tail for name in times for tail in _tails(name))
        for index, plain in enumerate(asked):
            if rows[index] >= 0 or times[plain] > 1:
                continue
            row = equal.get(plain, -1)
            row = held_ends.get(plain, -1) if row < 0 and not ends[plain] else row
            for tail in _tails(plain):
                if row < 0 and ends[tail] == 1 and not times[tail]:
                    row = equal.get(tail, -1)
            rows[index] = row
        return rows


@dataclass(frozen=True)
class LandmarkSet:
    """Landmarks of N images, K each.

    Attributes:
        points: (N, K, 2) float32, (x, y) in pixels of the image, integers at pixel centres, NaN for a missing landmark;
            all NaN for an image in which no face was found.
        names: N names, each an image's path relative to the images' folder, or its stem.
        scores: (N, K) float32, the confidence of each landmark, NaN if unknown; or None.
        digests: N digests of the image files (`files.digest`), "" if unknown; or None.
    """

    points: Tensor
    names: tuple[str, ...]
    scores: Tensor | None = None
    digests: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _checks.instance("points", self.points, (Tensor, np.ndarray), "a tensor or an array of shape (N, K, 2)")
        points = torch.as_tensor(self.points, dtype=torch.float32)
        if points.ndim != 3 or points.shape[-1] != 2:
            raise ValueError(f"points must have shape (N, K, 2), got {tuple(points.shape)}")
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "names", _checks.texts("names", self.names, len(points)))
        if len(set(self.names)) < len(self.names):
            twice = [name for name, times in Counter(self.names).items() if times > 1]
            raise ValueError(f"names must be unique, got {len(twice)} names more than once: {first_few(twice)}")
        if self.scores is not None:
            _checks.instance("scores", self.scores, (Tensor, np.ndarray), "a tensor or an array of shape (N, K)")
            scores = torch.as_tensor(self.scores, dtype=torch.float32)
            if scores.shape != points.shape[:2]:
                raise ValueError(f"scores must have shape {tuple(points.shape[:2])}, got {tuple(scores.shape)}")
            object.__setattr__(self, "scores", scores)
        if self.digests is not None:
            object.__setattr__(self, "digests", _checks.texts("digests", self.digests, len(points)))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def found(self) -> Tensor:
        """(N,) bool: whether the image has any landmark."""
        return self.points.isfinite().all(-1).any(-1)

    def find(self, names: Iterable[str]) -> Tensor:
        """For each image name, the row that belongs to it, or -1.

        See `NameIndex` for which names match.

        Returns: int64, one per name.
        """
        return torch.tensor(NameIndex(self.names).find(_checks.texts("names", names)), dtype=torch.int64)

    def select(self, rows: Sequence[int] | Tensor) -> LandmarkSet:
        """The images of these rows, in this order."""
        index = _checks.whole_numbers("rows", rows)
        chosen = index.tolist()
        scores = None if self.scores is None else self.scores[index]
        digests = None if self.digests is None else tuple(self.digests[row] for row in chosen)
        return LandmarkSet(self.points[index], tuple(self.names[row] for row in chosen), scores, digests)

    def save(self, path: str | Path, *, settings: str = "") -> None:
        """Writes the package's own .npz atomically: arrays `names`, `points`, `scores` and, if known, `digests`; no
        pickle.

        Args: settings, how the landmarks were made, is stored with them.
        Raises: ValueError for a path that does not end in .npz, by which it is recognised; OSError naming it.
        """
        if _checks.path("path", path).suffix.lower() != ".npz":
            raise ValueError(f"path must end in .npz, got {str(path)!r}")
        scores = torch.full(self.points.shape[:2], torch.nan) if self.scores is None else self.scores
        arrays = {"names": _strings(self.names), "points": self.points.numpy(), "scores": scores.numpy()}
        if self.digests is not None:
            arrays["digests"] = _strings(self.digests)
        write_npz(path, arrays | ({"settings": np.array(settings)} if settings else {}))


def _strings(values: tuple[str, ...]) -> np.ndarray[Any, Any]:
    """(N,) numpy strings, even for N = 0, where numpy would infer floats."""
    return np.array(values or [""], dtype=np.str_)[: len(values)]


def load_npz(path: str | Path) -> LandmarkSet:
    """Reads a file written by `LandmarkSet.save`. Raises LandmarkFileError for any other content."""
    expected = "an .npz with arrays names (N,), points (N, K, 2) and scores (N, K), no pickle"
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in ("names", "points") if name not in archive.files]
            if missing:
                raise LandmarkFileError(path, None, expected, f"no array {first_few(missing)} among {archive.files}")
            names, points = archive["names"], archive["points"]
            scores = archive["scores"] if "scores" in archive.files else None
            digests = archive["digests"] if "digests" in archive.files else None
    except _NOT_AN_NPZ as error:
        if isinstance(error, (LandmarkFileError, FileNotFoundError, PermissionError)):
            raise
        raise LandmarkFileError(path, None, expected, f"a file that cannot be read as one ({error})") from error
    if points.ndim != 3 or points.shape[-1] != 2 or points.dtype.kind != "f" or len(names) != len(points):
        raise LandmarkFileError(path, None, expected, f"points {points.shape} {points.dtype} for {len(names)} names")
    if scores is not None and (scores.shape != points.shape[:2] or np.isnan(scores).all()):
        scores = None
    try:
        return LandmarkSet(
            torch.from_numpy(points.astype(np.float32)),
            tuple(str(name) for name in names),
            None if scores is None else torch.from_numpy(scores.astype(np.float32)),
            None if digests is None else tuple(str(digest) for digest in digests),
        )
    except ValueError as error:
        raise LandmarkFileError(path, None, expected, str(error)) from error


def read_settings(path: str | Path) -> str:
    """The `settings` with which the landmarks in one of the package's .npz were saved; "" if it holds none."""
    with np.load(path, allow_pickle=False) as archive:
        return str(archive["settings"]) if "settings" in archive.files else ""


def merge(sets: Sequence[LandmarkSet], *, overlap: bool = False) -> LandmarkSet:
    """Joins the sets, sorted by name. An image may be in several sets only with `overlap` (the last one wins).

    Raises: TypeError for anything but sets; ValueError for no sets, different numbers of landmarks, or images that are
        in several sets.
    """
    _checks.instance("sets", sets, Sequence, "a sequence of LandmarkSet")
    for part in sets:
        _checks.instance("each of sets", part, LandmarkSet, "a LandmarkSet")
    if not sets:
        raise ValueError("sets must hold at least one LandmarkSet, got none")
    counts = sorted({part.points.shape[1] for part in sets})
    if len(counts) > 1:
        raise ValueError(f"sets must have the same number of landmarks, got {counts}")
    names = [name for part in sets for name in part.names]
    rows = {name: row for row, name in enumerate(names)}
    if len(rows) < len(names) and not overlap:
        twice = [name for name, times in Counter(names).items() if times > 1]
        raise ValueError(f"sets must not overlap, but {len(twice)} images are in more than one: {first_few(twice)}")
    order = sorted(rows)
    chosen = [rows[name] for name in order]
    points = torch.cat([part.points for part in sets])[chosen]
    scores: Tensor | None = None
    if any(part.scores is not None for part in sets):
        scores = torch.cat([torch.full(p.points.shape[:2], torch.nan) if p.scores is None else p.scores for p in sets])
        scores = scores[chosen]
    digests: tuple[str, ...] | None = None
    if any(part.digests is not None for part in sets):
        held = [digest for part in sets for digest in part.digests or [""] * len(part)]
        digests = tuple(held[row] for row in chosen)
    return LandmarkSet(points, tuple(order), scores, digests)

"""What a data set's reader finds on the disk, checked as a whole: one summary of all problems."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from pal_fast import _checks
from pal_fast.data import images
from pal_fast.landmarks import LandmarkSet
from pal_fast.landmarks.errors import NoLandmarksError
from pal_fast.messages import first_few

#: If more than this share of a face's landmarks lies outside its image, they do not belong to that image.
_MOST_OUTSIDE: Final = 0.5


@dataclass(frozen=True)
class Listing:
    """One split of a data set: the paths of N images, before any is read.

    Attributes:
        names: N paths relative to the data set's root, with forward slashes.
        files: N paths.
        labels: N indices into `classes`.
        landmarks: the data set's own: (N, K, 2), in pixels of the whole images, or None.
        boxes: (N, 4) int64, (left, top, width, height) of the faces to crop, or None for whole images.
    """

    names: tuple[str, ...]
    files: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    landmarks: Tensor | None = None
    boxes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    def select(self, rows: Sequence[int]) -> Listing:
        """The images of these rows, in this order."""
        index = torch.tensor(list(rows), dtype=torch.int64)
        return replace(
            self,
            names=tuple(self.names[row] for row in rows),
            files=tuple(self.files[row] for row in rows),
            labels=tuple(self.labels[row] for row in rows),
            landmarks=None if self.landmarks is None else self.landmarks[index],
            boxes=None if self.boxes is None else self.boxes[index],
        )


def choose_classes(listing: Listing, classes: int | Sequence[str] | None) -> Listing:
    """Keeps the images of these classes: the data set's first n, or the named ones in the given order."""
    if classes is None:
        return listing
    if isinstance(classes, int) and not isinstance(classes, bool):
        if not 1 <= classes <= len(listing.classes):
            raise ValueError(f"classes must be from 1 to {len(listing.classes)} for this data set, got {classes}")
        kept = listing.classes[:classes]
    else:
        kept = _checks.texts("classes", classes)
        for name in kept:
            _checks.choice("classes", name, listing.classes)
        if len(set(kept)) < len(kept) or not kept:
            raise ValueError(f"classes must be one or more distinct names, got {kept}")
    number = {listing.classes.index(name): new for new, name in enumerate(kept)}
    rows = [row for row, label in enumerate(listing.labels) if label in number]
    chosen = listing.select(rows)
    return replace(chosen, labels=tuple(number[label] for label in chosen.labels), classes=kept)


def check_files(listing: Listing, where: Path, verify: str, bad_images: str) -> tuple[Listing, Tensor | None]:
    """Leaves out images that are absent or unreadable, or rejects them in one summary.

    Args:
        where: the data set's root, for the message.
        verify: "quick" reads every header, "full" every pixel, "none" only checks that the files exist.
        bad_images: "error" or "skip", which warns.

    Returns: the usable images, and their (height, width), (N, 2) int64, or None for verify "none".
    """
    _checks.choice("verify", verify, ("quick", "full", "none"))
    _checks.choice("bad_images", bad_images, ("error", "skip"))
    lacking = set(images.absent(listing.files))
    present = [row for row in range(len(listing)) if row not in lacking]
    reasons: dict[int, str] = {}
    sizes = None
    if verify != "none":
        found = images.inspect_all([listing.files[row] for row in present], full=verify == "full")
        reasons = {row: what for row, what in zip(present, found, strict=True) if isinstance(what, str)}
        if listing.boxes is not None:
            for row, what in zip(present, found, strict=True):
                left, top = listing.boxes[row, :2].tolist()
                if not isinstance(what, str) and (top >= what[0] or left >= what[1]):
                    reasons[row] = f"the face's box begins outside the {what[1]} x {what[0]} pixels"
        kept_sizes = [what for row, what in zip(present, found, strict=True) if row not in reasons]
        sizes = torch.tensor(kept_sizes, dtype=torch.int64).view(-1, 2)
    if lacking or reasons:
        parts = []
        if lacking:
            parts.append(f"{len(lacking)} absent ({first_few(listing.names[row] for row in sorted(lacking))})")
        if reasons:
            shown = first_few([f"{listing.names[row]}: {why}" for row, why in reasons.items()], 3)
            parts.append(f"{len(reasons)} unusable ({shown})")
        message = f"{where}: of {len(listing)} images {' and '.join(parts)}"
        if bad_images == "error":
            raise ValueError(f"{message}; bad_images='skip' leaves them out")
        warnings.warn(f"{message}; they are left out", stacklevel=4)
    return listing.select([row for row in present if row not in reasons]), sizes


def check_classes(listing: Listing, where: Path) -> None:
    """Raises ValueError if there is no image at all; warns of classes without images."""
    if not len(listing):
        raise ValueError(f"{where} holds no image to use")
    counts = Counter(listing.labels)
    empty = [name for label, name in enumerate(listing.classes) if not counts[label]]
    if empty:
        warnings.warn(f"{where}: {len(empty)} classes without images: {', '.join(empty)}", stacklevel=4)


def attach(listing: Listing, marks: LandmarkSet, source: str, others: Callable[[], Iterable[str]] = tuple) -> Tensor:
    """The landmarks matched to the images by name, (N, K, 2), NaN for images without any; a warning counts those.

    Args:
        others: the names of the data set's other images, of all splits. Landmarks named `happy/1.jpg` belong to
            `train/happy/1.jpg` only if there is no `test/happy/1.jpg`.

    Raises: NoLandmarksError if no image has landmarks; ValueError if names match several images of the data set.
    """
    rows = _find(listing, marks, source, others)
    points = (
        marks.points[rows.clamp_min(0)] if len(marks) else marks.points.new_zeros(len(rows), *marks.points.shape[1:])
    )
    points = points.masked_fill((rows < 0)[:, None, None], torch.nan)
    found = points.isfinite().all(-1).any(-1)
    if bool((rows >= 0).any()) and not found.any():
        named = [listing.names[row] for row in (rows >= 0).nonzero().flatten().tolist()]
        raise NoLandmarksError(
            f"{source} names {len(named)} of the {len(listing)} images of the data set ({first_few(named, 3)}), but "
            "holds no points: all their landmarks are missing (NaN)"
        )
    if not found.any():
        raise NoLandmarksError(
            f"{source} holds landmarks of {len(marks)} images ({first_few(marks.names, 3)}), but for none of the "
            f"{len(listing)} images of the data set ({first_few(listing.names, 3)})"
        )
    unnamed = [listing.names[row] for row in (rows < 0).nonzero().flatten().tolist()]
    faceless = [listing.names[row] for row in ((rows >= 0) & ~found).nonzero().flatten().tolist()]
    parts = []
    if unnamed:
        parts.append(f"{len(unnamed)} are not in {source} ({first_few(unnamed, 3)})")
    if faceless:
        parts.append(f"{len(faceless)} are in it without a face ({first_few(faceless, 3)})")
    if parts:
        warnings.warn(
            f"of {len(listing)} images {' and '.join(parts)}: the loss leaves samples without landmarks out",
            stacklevel=4,
        )
    return points


def _find(listing: Listing, marks: LandmarkSet, source: str, others: Callable[[], Iterable[str]]) -> Tensor:
    """The row of `marks` of each image, or -1."""
    rows = marks.find(listing.names)
    held = set(marks.names)
    if not any(row >= 0 and name not in held for row, name in zip(rows.tolist(), listing.names, strict=True)):
        return rows  # identical names: no ambiguity
    together = list(dict.fromkeys([*listing.names, *others()]))
    sure = marks.find(together)[: len(listing)]
    doubtful = ((rows >= 0) & (sure < 0)).nonzero().flatten().tolist()
    if doubtful:
        pairs = [f"{marks.names[int(rows[row])]} for {listing.names[row]}" for row in doubtful]
        raise ValueError(
            f"{source}: {len(doubtful)} names match images of more than one split or class ({first_few(pairs, 3)}): "
            "name the landmarks by their images' paths relative to the data set's folder, as `pal-fast landmarks` does "
            "when it is given that folder"
        )
    return sure


def check_inside(listing: Listing, points: Tensor, sizes: Tensor, source: str) -> None:
    """Warns of faces whose landmarks mostly lie outside their image: they belong to other images or another crop.

    Args: points (N, K, 2) in pixels of the whole images; sizes (N, 2), (height, width).
    """
    limits = sizes.flip(-1).unsqueeze(1)  # (N, 1, 2): width, height
    known = points.isfinite().all(-1)
    outside = known & ((points < -0.5) | (points > limits - 0.5)).any(-1)
    share = outside.sum(1) / known.sum(1).clamp_min(1)
    wrong = [listing.names[row] for row in (share > _MOST_OUTSIDE).nonzero().flatten().tolist()]
    if wrong:
        warnings.warn(
            f"{source}: in {len(wrong)} of {len(listing)} images most landmarks lie outside the image "
            f"({first_few(wrong, 3)}): do they refer to the same crop and size?",
            stacklevel=4,
        )

"""Warnings about implausible landmarks, given when a file or a data set is opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pal_fast.landmarks.landmark_set import LandmarkSet
from pal_fast.messages import first_few
from pal_fast.suspect_landmarks import coincide, lying
from pal_fast.warn import warn


def without_coincident(points: Tensor, names: Sequence[str], source: str | Path) -> Tensor:
    """The landmarks, set to NaN in images where they all coincide: some detectors write (0, 0) for a face not found.

    A warning gives the number of these images and some of their names.

    Args:
        points: (N, K, 2), NaN for missing ones; not modified.
        names: N names of images.
        source: where the landmarks come from, for the message.
    """
    alike = coincide(points, points.isfinite().all(-1))
    if not alike.any():
        return points
    rows = alike.nonzero().flatten().tolist()
    warn(
        f"{source}: in {len(rows)} of {len(points)} images all landmarks lie in one point, as if no face had been "
        f"found ({first_few([names[row] for row in rows])}): they are treated as missing (NaN)"
    )
    return points.masked_fill(alike[:, None, None], torch.nan)


def warn_of_further_faces(names: Sequence[str], source: str | Path) -> None:
    """Warns of images with several faces, of which only the first was read."""
    if names:
        warn(f"{source}: {len(names)} images have several faces, of which the first is read ({first_few(names)})")


def checked_set(landmarks: LandmarkSet, source: str | Path) -> LandmarkSet:
    """The set with `without_coincident` applied."""
    points = without_coincident(landmarks.points, landmarks.names, source)
    if points is landmarks.points:
        return landmarks
    return LandmarkSet(points, landmarks.names, landmarks.scores, landmarks.digests)


def warn_unless_upright(points: Tensor, source: str | Path, remedy: str) -> None:
    """Warns if in most faces the mouth does not lie below the eyes, which usually means that x and y are swapped.

    Args:
        points: (N, K, 2), (x, y), NaN for missing ones; only the 68-point scheme is checked.
        source: where they come from, for the message.
        remedy: what to do if they are swapped.
    """
    wrong, judged = lying(points)
    if 2 * wrong > judged:
        warn(
            f"{source}: in {wrong} of {judged} faces the mouth (points 48-67) does not lie below the eyes (36-47): "
            f"are x and y swapped? {remedy}"
        )

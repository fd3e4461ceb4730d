"""Facial landmarks: read from every common format, converted, matched with images, extracted.

Throughout the package landmarks are (N, K, 2) float32, (x, y) in pixels of their image, integers at pixel centres, NaN
for missing ones.
"""

from __future__ import annotations

from pal_fast.landmarks.errors import LandmarkFileError
from pal_fast.landmarks.formats import FORMATS, guess_format, read_landmark_set, read_landmarks, write_landmarks
from pal_fast.landmarks.geometry import fit_similarity, transform_points
from pal_fast.landmarks.landmark_set import LandmarkSet, merge
from pal_fast.landmarks.schemes import MIRROR, renumber_mirrored, to_68_points

__all__ = [
    "FORMATS",
    "MIRROR",
    "LandmarkFileError",
    "LandmarkSet",
    "fit_similarity",
    "guess_format",
    "merge",
    "read_landmark_set",
    "read_landmarks",
    "renumber_mirrored",
    "to_68_points",
    "transform_points",
    "write_landmarks",
]

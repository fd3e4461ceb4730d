"""MediaPipe's face mesh: 468 or 478 points, normalised by the image's width and height."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pal_fast import _checks
from pal_fast.landmarks.errors import LandmarkFileError
from pal_fast.landmarks.landmark_set import LandmarkSet, stem_of
from pal_fast.landmarks.reading import read_text

COUNTS = (468, 478)
_EXPECTED = (
    "468 or 478 points: a JSON list of {x, y} or [x, y], or an object from image names to such lists (null for no "
    "face); or an .npy of shape (N, 468 or 478, 2 or 3)"
)

#: (height, width) in pixels of the image of that name.
ImageSize = Callable[[str], tuple[int, int]]


def to_pixels(normalised: Tensor, height: int, width: int) -> Tensor:
    """(..., K, 2) from [0, 1], where 0 and 1 are the image's outer edges, to pixels with integer = pixel centre."""
    return normalised * torch.tensor([width, height], dtype=normalised.dtype) - 0.5


def read_mediapipe(path: str | Path, image_size: ImageSize) -> LandmarkSet:
    """Reads normalised points and converts them to pixels.

    Args: image_size returns the (height, width) of an image by its name (its row number for an .npy).
    """
    path = Path(path)
    named = _from_npy(path) if path.suffix == ".npy" else _from_json(path)
    count = next((len(points) for points in named.values() if points is not None), None)
    if count is None:
        raise LandmarkFileError(path, None, _EXPECTED, "no image with points")
    rows = []
    for name, points in named.items():
        if points is None:
            rows.append(torch.full((count, 2), torch.nan))
            continue
        if len(points) not in COUNTS or len(points) != count:
            raise LandmarkFileError(path, None, _EXPECTED, f"{len(points)} points in {name!r}")
        height, width = image_size(name)
        rows.append(to_pixels(torch.from_numpy(points[:, :2].astype(np.float64)), height, width).float())
    return LandmarkSet(torch.stack(rows), tuple(named))


def _from_npy(path: Path) -> dict[str, np.ndarray | None]:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise LandmarkFileError(path, None, _EXPECTED, str(error)) from error
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[1] not in COUNTS or array.shape[2] not in (2, 3) or array.dtype.kind != "f":
        raise LandmarkFileError(path, None, _EXPECTED, f"an array {array.shape} {array.dtype}")
    names = [path.stem] if len(array) == 1 else [str(row) for row in range(len(array))]
    return dict(zip(names, array, strict=True))


def _from_json(path: Path) -> dict[str, np.ndarray | None]:
    try:
        content = json.loads(read_text(path, _EXPECTED))
    except RecursionError:
        raise LandmarkFileError(path, None, _EXPECTED, "lists nested too deeply") from None
    except json.JSONDecodeError as error:
        raise LandmarkFileError(path, error.lineno, _EXPECTED, error.msg) from error
    named = {path.stem: content} if isinstance(content, list) else content
    if not isinstance(named, dict):
        raise LandmarkFileError(path, None, _EXPECTED, f"a {type(content).__name__}")
    return {name: None if points is None else _points(path, name, points) for name, points in named.items()}


def _points(path: Path, name: str, points: Any) -> np.ndarray:
    try:
        pairs = [(p["x"], p["y"]) if isinstance(p, dict) else (p[0], p[1]) for p in points]
        return np.asarray(pairs, np.float64).reshape(-1, 2)
    except (TypeError, KeyError, IndexError, ValueError) as error:
        raise LandmarkFileError(path, None, _EXPECTED, f"{name!r} with {error!r}") from error


def image_sizes(image_size: int | tuple[int, int] | None, images: str | Path | None) -> ImageSize:
    """The sizes of images by name: all `image_size`, or read from the files in the folder `images`.

    Raises: ValueError if neither is given; TypeError, ValueError, FileNotFoundError for one that is not valid.
    """
    if image_size is not None:
        size = _checks.size_pair("image_size", image_size)
        return lambda name: size
    if images is None:
        raise ValueError("normalised landmarks need image_size=(height, width), or images=, the folder of the images")
    folder = _checks.path("images", images)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no image folder {folder}")
    by_stem = {stem_of(file.name): file for file in sorted(folder.rglob("*")) if file.is_file()}

    def size_of(name: str) -> tuple[int, int]:
        try:
            from PIL import Image
        except ImportError as error:
            raise ImportError("reading images' sizes needs Pillow: pip install 'pal_fast[explain]'") from error
        file = folder / name if (folder / name).is_file() else by_stem.get(stem_of(name))
        if file is None:
            raise FileNotFoundError(f"no image {name!r} under {folder}")
        with Image.open(file) as image:
            return image.height, image.width

    return size_of

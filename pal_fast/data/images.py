"""Images from files, cropped if a face box is given, and from memory; and which files cannot be used."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from torch import Tensor

from pal_fast.image_files import check_depth, read_image

_THREADS: Final = 8
_END: Final = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}  # missing from a truncated file
_TAIL: Final = 4096  # bytes at the end of a file that are searched for it


class ImageFiles:
    """Images read from files on demand, as they are stored: an EXIF orientation is not applied.

    Args:
        files: N paths.
        boxes: (N, 4) int64, (left, top, width, height), the crops; None for whole images.
    """

    def __init__(self, files: Sequence[Path], boxes: Tensor | None = None) -> None:
        self.files = tuple(files)
        self.boxes = boxes

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        if self.boxes is None:
            return read_image(self.files[index])
        left, top, width, height = self.boxes[index].tolist()
        return read_image(self.files[index], (left, top, width, height))


class MemoryImages:
    """Images in memory, (N, 3, H, W) uint8."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def absent(files: Sequence[Path]) -> list[int]:
    """The indices of files that do not exist. Lists each folder once, which is fast on a network disk, too."""
    folders: dict[Path, list[int]] = defaultdict(list)
    for index, file in enumerate(files):
        folders[file.parent].append(index)
    lacking: list[int] = []
    for folder, indices in folders.items():
        try:
            held = {entry.name for entry in os.scandir(folder)}
        except (FileNotFoundError, NotADirectoryError):
            held = set()
        lacking += [index for index in indices if files[index].name not in held]
    return sorted(lacking)


def inspect(path: Path, *, full: bool = False) -> tuple[int, int] | str:
    """(height, width) of an image file, or why it cannot be used.

    Reads the header and the end of a JPEG or PNG, which a truncated file lacks; with `full`, all pixels.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            check_depth(image)
            size, end = (image.height, image.width), _END.get(image.format or "")
            if full or (end is not None and not _ends_with(path, end)):
                image.load()
    except FileNotFoundError:
        return "no such file"
    except Exception as error:  # as in read_image
        return "not an image" if "cannot identify" in str(error) else (str(error) or type(error).__name__)
    return size


def _ends_with(path: Path, end: bytes) -> bool:
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _TAIL))
        return end in file.read()


def inspect_all(files: Sequence[Path], *, full: bool = False) -> list[tuple[int, int] | str]:
    """`inspect` for many files, several at a time, since most of the time goes to the disk."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda file: inspect(file, full=full), files, chunksize=64))

"""Image files: listed in a folder, read as stored."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_EXTENSIONS: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})

#: (left, top, width, height) in whole pixels.
Box = tuple[int, int, int, int]


class UnreadableImageError(OSError):
    """A file that exists but cannot be decoded; the message names it."""


def list_images(folder: str | Path) -> list[str]:
    """The images below a folder, as sorted relative paths with forward slashes; hidden ones are left out.

    Raises: FileNotFoundError if there is no such folder, or it contains no images.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no image folder {folder}")
    names = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(place).relative_to(folder)
        names += [
            (below / name).as_posix()
            for name in files
            if os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS and not name.startswith(".")
        ]
    if not names:
        raise FileNotFoundError(f"no image under {folder} ({', '.join(sorted(IMAGE_EXTENSIONS))})")
    return sorted(names)


def check_depth(image: Image) -> None:
    """Raises ValueError for pixels that cannot be converted to 8 bits, because their range is unknown."""
    # Pillow opens some 16-bit formats in its 32-bit mode.
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError(f"its pixels (mode {image.mode}) have no known range: they must have 8 or 16 bits")


def rgb(image: Image) -> np.ndarray[Any, Any]:
    """(H, W, 3) uint8 of an image that passes `check_depth`; of 16 bits, the upper eight."""
    if image.mode.startswith("I"):
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))


def read_image(path: str | Path, box: Box | None = None) -> Tensor:
    """(3, H, W) uint8, RGB, as stored: an EXIF orientation is not applied, since landmarks count stored pixels.

    Args: box: crops the image; it is clipped at the right and lower border.
    Raises: UnreadableImageError, or another OSError naming the file.
    """
    from PIL.Image import open as open_image

    try:
        with open_image(path) as image:
            check_depth(image)
            if box is not None:
                left, top, width, height = box
                image = image.crop((left, top, min(left + width, image.width), min(top + height, image.height)))
            pixels = rgb(image)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no image file {path}") from error
    except Exception as error:  # Pillow's decoders raise SyntaxError, ValueError, struct.error and more
        raise UnreadableImageError(f"{path} cannot be read as an image: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)

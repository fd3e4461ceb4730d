"""A folder of class folders, as torchvision's ImageFolder reads it: `root/train/CLASS/**/*.jpg`, `root/test/...`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pal_fast.data.listing import Listing
from pal_fast.image_files import IMAGE_EXTENSIONS

_SPLITS: Final = {"train": ("train", "training"), "test": ("test", "val", "valid", "validation")}


def _split_folder(root: Path, split: str) -> Path | None:
    return next((root / name for name in _SPLITS[split] if (root / name).is_dir()), None)


def list_images(root: Path, split: str, **_: Any) -> Listing:
    """The images below the class folders of a split. The classes are the sorted folder names of all splits."""
    folder = _split_folder(root, split)
    if folder is None:
        raise FileNotFoundError(f"no folder {' or '.join(_SPLITS[split])} under {root}")
    present = [found for name in _SPLITS if (found := _split_folder(root, name)) is not None]
    classes = sorted({path.name for part in present for path in part.iterdir() if _is_class(path)})
    if not classes:
        raise FileNotFoundError(f"{folder} holds no class folders")
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        inside = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in IMAGE_EXTENSIONS)
        files += inside
        labels += [label] * len(inside)
    names = tuple(path.relative_to(root).as_posix() for path in files)
    return Listing(names, tuple(files), tuple(labels), tuple(classes))


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith((".", "__"))

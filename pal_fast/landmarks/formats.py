"""Every landmark format by name: guessed from a file, read into a `LandmarkSet`, written from one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Final

import numpy as np
import torch
from torch import Tensor

from pal_fast import _checks
from pal_fast.files import whole_folder
from pal_fast.landmarks import affectnet, rafdb, text_formats
from pal_fast.landmarks.dlib_xml import read_dlib_xml, write_dlib_xml
from pal_fast.landmarks.errors import LandmarkFileError
from pal_fast.landmarks.landmark_set import LandmarkSet, load_npz, stem_of, without_extension
from pal_fast.landmarks.mediapipe import COUNTS, image_sizes, read_mediapipe
from pal_fast.landmarks.plausible import checked_set, warn_unless_upright
from pal_fast.landmarks.reading import read_each
from pal_fast.messages import first_few


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        describe: description for help texts.
        read_one: for formats with one file per image: (K, 2) float32 from a file.
        pattern: glob pattern of these files in a folder.
        read_all: for formats with many images per file.
        write_one, write_all: the same for writing; None if the format cannot be written.
        extension: of the files that `write_one` writes, and of those that are written in this format unless another is
            named.
        check_guess: for formats whose content may be that of another format: raises LandmarkFileError for an ambiguous
            file, whose format must then be named.
    """

    describe: str
    read_one: Callable[[Path], np.ndarray] | None = None
    pattern: str = ""
    read_all: Callable[[Path], LandmarkSet] | None = None
    write_one: Callable[[Path, np.ndarray], None] | None = None
    write_all: Callable[[Path, LandmarkSet], None] | None = None
    extension: str = ""
    check_guess: Callable[[Path], None] | None = None


def _affectnet_csv(path: Path) -> LandmarkSet:
    rows = list(affectnet.read_csv(path))
    if not rows:
        raise LandmarkFileError(path, None, f"rows of the columns {','.join(affectnet.COLUMNS)}", "none")
    points = np.stack([row.points for row in rows])
    try:
        return LandmarkSet(torch.from_numpy(points), tuple(row.name for row in rows))
    except ValueError as error:
        raise LandmarkFileError(path, None, "every image once", str(error)) from error


FORMATS: Final[dict[str, Format]] = {
    "npz": Format(
        "the package's own: names, points, scores",
        read_all=load_npz,
        write_all=lambda path, marks: marks.save(path),
        extension=".npz",
    ),
    "pts": Format(
        "300-W .pts, one per image, pixels counted from 1",
        text_formats.read_pts,
        "*.pts",
        write_one=text_formats.write_pts,
        extension=".pts",
    ),
    "row-column": Format(
        "68 lines row<TAB>column per image, a known dump for aligned RAF-DB",
        text_formats.read_row_column,
        "*.txt",
        write_one=text_formats.write_row_column,
        extension=".txt",
        check_guess=text_formats.check_row_column_guess,
    ),
    "x-y": Format(
        "lines x y per image, pixels counted from 0; never guessed",
        text_formats.read_x_y,
        "*.txt",
        write_one=text_formats.write_x_y,
        extension=".txt",
    ),
    "rafdb-auto": Format(
        "RAF-DB Annotation/auto, 37 points in the original image", rafdb.read_auto, "*_auto_attri.txt"
    ),
    "rafdb-manual": Format(
        "RAF-DB Annotation/manual, 5 points in the original image", rafdb.read_manual, "*_manu_attri.txt"
    ),
    "affectnet-csv": Format("AffectNet list, 68 points in the full image", read_all=_affectnet_csv),
    "affectnet-npy": Format("AffectNet *_lnd.npy, 68 points per image", affectnet.read_npy, "*_lnd.npy"),
    "wflw": Format("WFLW list, 98 points", read_all=text_formats.read_wflw, write_all=text_formats.write_wflw),
    "dlib-xml": Format("dlib imglab XML", read_all=read_dlib_xml, write_all=write_dlib_xml, extension=".xml"),
    "mediapipe": Format("MediaPipe mesh, 468 or 478 normalised points, .json or .npy; needs the images' size"),
}


def guess_format(path: str | Path) -> str:
    """The format of a file or folder, from its name and first lines.

    Lines of two numbers are taken for "row-column" only if they are whole pixels separated by a TAB.

    Raises: FileNotFoundError; ValueError with the known formats; LandmarkFileError for a .txt that may hold x, y.
    """
    path = _checks.path("path", path)
    if not path.exists():
        raise FileNotFoundError(f"no landmarks at {path}")
    if path.is_dir():
        for name in ("rafdb-auto", "rafdb-manual", "affectnet-npy", "pts", "row-column"):
            first = min(path.rglob(FORMATS[name].pattern), default=None)
            if first is not None:
                if (check := FORMATS[name].check_guess) is not None:
                    check(first)
                return name
        raise ValueError(f"{path} holds no landmark file; name its format: {', '.join(FORMATS)}")
    by_suffix = {".npz": "npz", ".pts": "pts", ".csv": "affectnet-csv", ".xml": "dlib-xml", ".json": "mediapipe"}
    if path.suffix.lower() in by_suffix:
        return by_suffix[path.suffix.lower()]
    if path.suffix == ".npy":
        try:
            shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
        except (ValueError, EOFError):
            shape = ()  # its reader reports what is wrong
        return "mediapipe" if len(shape) > 1 and shape[-2] in COUNTS else "affectnet-npy"
    if path.suffix == ".txt":
        if path.name.endswith("_auto_attri.txt"):
            return "rafdb-auto"
        if path.name.endswith("_manu_attri.txt"):
            return "rafdb-manual"
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            if len(file.readline().split()) > 100:
                return "wflw"
        text_formats.check_row_column_guess(path)
        return "row-column"
    raise ValueError(f"the format of {path} cannot be told from its name; name it: {', '.join(FORMATS)}")


def read_landmark_set(
    path: str | Path,
    format: str | None = None,
    *,
    image_size: int | tuple[int, int] | None = None,
    images: str | Path | None = None,
) -> LandmarkSet:
    """Reads landmarks of any known format.

    Args:
        path: a file, or a folder of files with one image each (read in the order of their names).
        format: one of `FORMATS`; None guesses. "x-y" must be named, and so must "row-column" if its lines are not whole
            pixels separated by a TAB.
        image_size: (height, width) of all images, for normalised formats.
        images: folder of the images, from whose files the sizes are read, for normalised formats.

    Returns: a set in which images whose landmarks all coincide have none; a warning counts these images.
    Raises: LandmarkFileError with file, line and what was expected; FileNotFoundError; ValueError.
    """
    return checked_set(_read(_checks.path("path", path), format, image_size, images), path)


def _read(
    path: Path, format: str | None, image_size: int | tuple[int, int] | None, images: str | Path | None
) -> LandmarkSet:
    name = guess_format(path) if format is None else format
    _checks.choice("format", name, tuple(FORMATS))
    if not path.exists():
        raise FileNotFoundError(f"no landmarks at {path}")
    if name == "mediapipe":
        return read_mediapipe(path, image_sizes(image_size, images))
    chosen = FORMATS[name]
    if chosen.read_all is not None:
        landmarks = chosen.read_all(path)
        if name == "npz":  # it may hold a user's own arrays; the other formats say which number is x
            warn_unless_upright(landmarks.points, path, "points[..., [1, 0]] exchanges them")
        return landmarks
    assert chosen.read_one is not None
    if path.is_dir():
        files = sorted(path.rglob(chosen.pattern))
        if not files:
            raise FileNotFoundError(f"no {chosen.pattern} under {path}")
        names = tuple(_image_of(name, file.relative_to(path).with_suffix("")) for file in files)
    else:
        files, names = [path], (stem_of(path.name),)
    read_one = functools.partial(_read_guessed, chosen) if format is None else chosen.read_one
    tables = read_each(path, files, read_one)
    counts: dict[int, list[str]] = {}
    for table, file in zip(tables, names, strict=True):
        counts.setdefault(len(table), []).append(file)
    if len(counts) > 1:
        odd = "; ".join(f"{len(of)} files with {count} ({first_few(of, 3)})" for count, of in sorted(counts.items()))
        raise LandmarkFileError(path, None, "the same number of landmarks in every file", odd)
    points = torch.from_numpy(np.stack(tables))
    if name in ("row-column", "x-y"):
        remedy = "format='x-y' reads lines of x and y, format='row-column' those of row and column"
        warn_unless_upright(points, path, remedy)
    return LandmarkSet(points, names)


def _read_guessed(guessed: Format, path: Path) -> np.ndarray:
    if guessed.check_guess is not None:
        guessed.check_guess(path)
    assert guessed.read_one is not None
    return guessed.read_one(path)


def _image_of(format: str, path: PurePath) -> str:
    """The name, without extension, of the image that the annotation file at this path belongs to."""
    if format.startswith("rafdb"):
        return stem_of(path.name)  # names in RAF-DB are unique, and its images are in another folder
    if format == "affectnet-npy":
        folder = path.parent.with_name("images") if path.parent.name == "annotations" else path.parent
        return (folder / stem_of(path.name)).as_posix()
    return path.as_posix()


def read_landmarks(
    path: str | Path,
    format: str | None = None,
    *,
    image_size: int | tuple[int, int] | None = None,
    images: str | Path | None = None,
) -> Tensor:
    """The points of `read_landmark_set`: (N, K, 2) float32, (x, y) in pixels, integer = pixel centre, NaN missing."""
    return read_landmark_set(path, format, image_size=image_size, images=images).points


def format_by_extension(path: str | Path) -> str:
    """The format in which `write_landmarks` writes to `path` unless another is named.

    Raises: ValueError unless the path ends in .npz or .xml.
    """
    suffix = _checks.path("path", path).suffix.lower()
    for name, known in FORMATS.items():
        if known.write_all is not None and known.extension == suffix != "":
            return name
    wanted = f"give --to, or the argument format, one of {_writable()}"
    raise ValueError(f"the format of {str(path)!r} cannot be told from its name: {wanted}")


def _writable() -> str:
    return ", ".join(name for name, known in FORMATS.items() if known.write_one or known.write_all)


def write_landmarks(path: str | Path, landmarks: LandmarkSet, format: str | None = None) -> None:
    """Writes landmarks: one file, or, for formats with one file per image, a folder of files.

    A new folder appears only when all its files are written; in an existing folder each file is written atomically.
    Images without any landmark get no file.

    Args: format, one of `FORMATS`; None takes "npz" or "dlib-xml" by the path's extension, .npz or .xml.
    Raises: TypeError, ValueError naming the argument, also for a format that cannot be written, or cannot hold these
        landmarks.
    """
    path = _checks.path("path", path)
    _checks.instance("landmarks", landmarks, LandmarkSet, "a LandmarkSet")
    format = format_by_extension(path) if format is None else format
    _checks.choice("format", format, tuple(FORMATS))
    chosen = FORMATS[format]
    if chosen.write_all is not None:
        chosen.write_all(path, landmarks)
        return
    if chosen.write_one is None:
        raise ValueError(f"format {format!r} can be read but not written; writable formats: {_writable()}")
    if format == "row-column":
        text_formats.check_row_column(landmarks)
    files: dict[PurePosixPath, int] = {}
    for row in landmarks.found.nonzero().flatten().tolist():
        file = PurePosixPath(without_extension(landmarks.names[row]) + chosen.extension)
        if file.is_absolute() or ".." in file.parts:
            raise ValueError(f"the name {landmarks.names[row]!r} points outside the folder {path}")
        if file in files:
            pair = f"{landmarks.names[files[file]]!r} and {landmarks.names[row]!r}"
            raise ValueError(f"images {pair} would share the file {file}")
        files[file] = row
    with whole_folder(path) as folder:
        for file, row in files.items():
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            chosen.write_one(target, landmarks.points[row].numpy())

"""Errors of landmark files: the file, the line, what was expected, what was found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from pal_fast.messages import first_few

Read = TypeVar("Read")


class LandmarkFileError(ValueError):
    """A landmark file that does not conform to its format."""

    def __init__(self, path: str | Path, line: int | None, expected: str, found: str) -> None:
        place = f"{path}" if line is None else f"{path}, line {line}"
        super().__init__(f"{place}: expected {expected}, found {found}")
        self.path, self.line = Path(path), line


class NoLandmarksError(FileNotFoundError, ValueError):
    """No image of a split has landmarks; images of other splits may have them."""


def numbers(text: str, path: Path, line: int, expected: str, separator: str | None = None) -> list[float]:
    """The numbers of one line. Raises LandmarkFileError that states what was expected."""
    try:
        return [float(word) for word in text.split(separator) if word.strip()]
    except ValueError:
        raise LandmarkFileError(path, line, expected, repr(text.strip()[:60])) from None


def read_each(where: Path, files: Sequence[Path], read_one: Callable[[Path], Read]) -> list[Read]:
    """Reads all files. A single failure raises its own error; several raise one summary with their count."""
    contents: list[Read] = []
    failures: list[LandmarkFileError] = []
    for file in files:
        try:
            contents.append(read_one(file))
        except LandmarkFileError as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        shown = first_few(map(str, failures), 3).replace(f"{where}/", "")
        raise LandmarkFileError(where, None, f"{len(files)} readable files", f"{len(failures)} that are not: {shown}")
    return contents

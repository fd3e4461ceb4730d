"""Reading of annotation files: their text, lines, rows and numbers, with errors that name the line."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from pal_fast.landmarks.errors import LandmarkFileError
from pal_fast.messages import first_few

Read = TypeVar("Read")


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1."""
    text = read_text(path, "a text file in UTF-8")
    return [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def read_text(path: Path, expected: str) -> str:
    """A whole file in UTF-8. Raises: LandmarkFileError with the line that is not UTF-8."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise LandmarkFileError(path, line, expected, f"bytes that are not UTF-8 at {error.start}") from error


def read_rows(path: Path, expected: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the non-empty rows of a UTF-8 CSV file, each with the number of its last line.

    Raises: LandmarkFileError with the line and `expected` for any other file.
    """
    # Bytes that are not UTF-8 are decoded as surrogates, so that their line is known.
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.reader(file)
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise LandmarkFileError(path, reader.line_num, expected, f"a file that is not CSV ({error})") from error
            if cells is None:
                return
            number = reader.line_num
            if any(_is_escaped(cell) for cell in cells):
                raise LandmarkFileError(path, number, f"{expected}, in UTF-8", "bytes that are not UTF-8")
            if cells:
                yield number, cells


def _is_escaped(text: str) -> bool:
    return not text.isascii() and any("\udc80" <= character <= "\udcff" for character in text)


def numbers(text: str, path: Path, line: int, expected: str) -> list[float]:
    """The numbers of one line. Raises LandmarkFileError that states what was expected."""
    try:
        return [float(word) for word in text.split()]
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

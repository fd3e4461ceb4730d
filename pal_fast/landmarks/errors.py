"""Errors of landmark files: the file, the line, what was expected, what was found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path


class LandmarkFileError(ValueError):
    """A landmark file that does not hold what its format promises."""

    def __init__(self, path: str | Path, line: int | None, expected: str, found: str) -> None:
        place = f"{path}" if line is None else f"{path}, line {line}"
        super().__init__(f"{place}: expected {expected}, found {found}")
        self.path, self.line = Path(path), line


def first_few(names: Iterable[str], count: int = 5) -> str:
    """ "a, b, c and 12 more": the first few of many names, for one summary message."""
    listed: Sequence[str] = list(names)
    shown = ", ".join(listed[:count])
    return shown if len(listed) <= count else f"{shown} and {len(listed) - count} more"


def numbers(text: str, path: Path, line: int, expected: str, separator: str | None = None) -> list[float]:
    """The numbers of one line. Raises LandmarkFileError with what was expected."""
    try:
        return [float(word) for word in text.split(separator) if word.strip()]
    except ValueError:
        raise LandmarkFileError(path, line, expected, repr(text.strip()[:60])) from None

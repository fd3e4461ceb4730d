"""Errors of landmark files: the file, the line, what was expected, what was found."""

from __future__ import annotations

from pathlib import Path


class LandmarkFileError(ValueError):
    """A landmark file that does not conform to its format."""

    def __init__(self, path: str | Path, line: int | None, expected: str, found: str) -> None:
        place = f"{path}" if line is None else f"{path}, line {line}"
        super().__init__(f"{place}: expected {expected}, found {found}")
        self.path, self.line = Path(path), line


class NoLandmarksError(FileNotFoundError, ValueError):
    """No image of a split has landmarks; images of other splits may have them."""

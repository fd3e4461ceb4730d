"""Atomic file writes: to a temporary file in the same folder, flushed to disk, then renamed; and a digest of
files."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a temporary file in the folder of `path` and renames it to `path` when the block ends without error.

    After an error, a full disk or a kill, `path` is unchanged. An error also removes the temporary file; one left by a
    kill is removed by `remove_partial`.
    """
    path = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent or ".")
    except OSError as error:  # its own message names the temporary file
        raise type(error)(error.errno, error.strerror, str(path)) from error
    try:
        # mkstemp makes files that only the owner may read; results should be as readable as any other file.
        os.chmod(temporary, 0o666 & ~_umask())
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def check_writable(path: str | Path, *, makes_folder: bool = False) -> None:
    """Raises OSError naming the file if `path` cannot be written; leaves nothing behind.

    Args: makes_folder: whether the writer creates missing parent folders.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder")
    folder = path.parent
    while makes_folder and not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {folder}")
    try:
        # Permissions are not sufficient: a disk may be mounted read-only.
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=folder)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
    os.close(handle)
    os.unlink(temporary)


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A folder to write to, which becomes `path` when the block ends without error; `path` itself if that exists."""
    path = Path(path)
    if path.exists():
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        os.chmod(temporary, 0o777 & ~_umask())
        yield Path(temporary)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def remove_partial(path: str | Path) -> None:
    """Removes temporary files left by killed writers of `path`. Must not run while another process writes it."""
    path = Path(path)
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Calls `write` with an open file and renames the result to `path`."""
    with atomic_write(path) as file:
        write(file)


def write_text(path: str | Path, text: str) -> None:
    with atomic_write(path, "w") as file:
        file.write(text)


def write_npz(path: str | Path, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    """A compressed .npz of plain arrays (no pickle)."""
    pickled = [name for name, array in arrays.items() if array.dtype.hasobject]
    if pickled:
        raise TypeError(f"arrays must not contain Python objects, got some in {', '.join(pickled)}")
    memory = io.BytesIO()
    plain: dict[str, Any] = arrays
    np.savez_compressed(memory, **plain)
    write_bytes(path, lambda file: file.write(memory.getbuffer()))


def digest(path: str | Path) -> str:
    """A hash of the file's content: 16 hexadecimal digits. Raises: OSError naming the file."""
    with open(path, "rb") as file:
        found = hashlib.blake2b(digest_size=8)
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.hexdigest()

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
from typing import IO, Any, Final

import numpy as np

#: The end of the names of temporary files and folders.
_PARTIAL: Final = ".partial"


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a temporary file in the folder of `path` and renames it to `path` when the block ends without error.

    After an error, a full disk or a kill, `path` is unchanged. An error also removes the temporary file; one left by a
    kill is removed by `remove_partial`.

    Raises: OSError naming the file, also for one that is raised within the block.
    """
    path = Path(path)
    temporary = ""
    try:
        handle, temporary = _make_partial(path, path.parent)
        # mkstemp makes files that only the owner may read; results should be as readable as any other file.
        os.chmod(temporary, 0o666 & ~_umask())
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        if isinstance(error, OSError):
            raise _cannot_write(path, error, "; the previous file is kept" if path.is_file() else "") from error
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
        handle, temporary = _make_partial(path, folder)
    except OSError as error:
        raise _cannot_write(path, error) from error
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
    temporary = tempfile.mkdtemp(prefix=f".{path.name}.", suffix=_PARTIAL, dir=path.parent)
    try:
        os.chmod(temporary, 0o777 & ~_umask())
        yield Path(temporary)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _make_partial(path: Path, folder: Path) -> tuple[int, str]:
    """The handle and the name of a new temporary file for `path` in a folder."""
    return tempfile.mkstemp(prefix=f".{path.name}.", suffix=_PARTIAL, dir=folder)


def _cannot_write(path: Path, error: OSError, kept: str = "") -> OSError:
    """The same error with a message that names the file; the original one names the temporary file, or none."""
    return type(error)(f"cannot write {path}: {error.strerror or error}{kept}")


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def is_partial(path: Path) -> bool:
    """Whether the name is that of a temporary file or folder of this module."""
    return path.name.startswith(".") and path.name.endswith(_PARTIAL)


def remove_partial(path: str | Path) -> None:
    """Removes temporary files left by killed writers of `path`. Must not run while another process writes it."""
    path = Path(path)
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*{_PARTIAL}"):
        temporary.unlink(missing_ok=True)


def remove_partial_in(folder: Path) -> None:
    """`remove_partial` for every file in the folder. Must not run while another process writes one of them."""
    for temporary in folder.glob(f".*{_PARTIAL}"):
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

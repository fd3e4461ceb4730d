"""Loads the compiled operators, `_C.abi3.so`, or gives the reason why it cannot.

The extension is in the package's own directory. A source tree that has not been built in place uses the
extension of an installed pal_fast, if there is one on `sys.path`; a stale extension is detected by the digest
of csrc/ that the build compiles in.
"""

from __future__ import annotations

import hashlib
import sys
import warnings
from functools import lru_cache
from pathlib import Path

import torch

FILE_NAME = "_C.abi3.so"
_PACKAGE = Path(__file__).resolve().parent
_SOURCE_SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}


def find() -> Path | None:
    """The path of the extension, or None if it was never built."""
    directories = [_PACKAGE, *(Path(entry or ".") / "pal_fast" for entry in sys.path)]
    return next((d / FILE_NAME for d in directories if (d / FILE_NAME).is_file()), None)


def source_digest(csrc: Path) -> str:
    """The digest of csrc/ as setup.py compiles it into the extension."""
    digest = hashlib.sha256()
    for path in sorted(p for p in csrc.rglob("*") if p.suffix in _SOURCE_SUFFIXES):
        digest.update(path.relative_to(csrc).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def load() -> str:
    """Registers the compiled operators under `torch.ops.pal_fast`; once per process.

    Returns: "" if they are available, otherwise the reason why not.
    """
    path = find()
    if path is None:
        if sys.platform == "win32":
            return "there is no extension for Windows: use WSL 2, which runs the one for Linux"
        return "the extension was not built (run `pip install .` in the source tree, without PAL_FAST_EXTENSION=0)"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path} cannot be loaded by PyTorch {torch.__version__}: {error}"
    csrc = _PACKAGE.parent / "csrc"
    if csrc.is_dir() and build_info().get("digest") != source_digest(csrc):
        warnings.warn(
            f"{path} was built from other sources than {csrc}; rebuild with `pip install .` or "
            "`python setup.py build_ext --inplace`",
            stacklevel=2,
        )
    return ""


def build_info() -> dict[str, str]:
    """What the loaded extension reports about itself: `digest`, `cuda` (its architectures, empty without CUDA)."""
    text: str = torch.ops.pal_fast.build_info()
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

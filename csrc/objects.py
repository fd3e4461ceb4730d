"""Object files: several are compiled at once, and one again only when something it depends on has changed."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import toolchain

CSRC = Path(__file__).parent.resolve()

#: A source and the command that compiles it, without the paths of the source and the object file.
Job = tuple[Path, list[str]]


def compile_all(jobs: list[Job], directory: Path) -> list[str]:
    """The object files of the jobs, in `directory`.

    Raises: SystemExit with the compiler's output if a source does not compile.
    """
    # The slowest first, so that the last job to run is a short one; and always in the same order, which links alike.
    ordered = sorted(jobs, key=lambda job: (job[0].suffix != ".cu", -_size(job[0]), job[0]))
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        return list(pool.map(lambda job: _compile(*job, directory), ordered))


def _compile(source: Path, command: list[str], directory: Path) -> str:
    target = directory / (source.relative_to(CSRC).as_posix().replace("/", "_") + ".o")
    stamp, key = target.with_suffix(".key"), _key(source, command)
    if target.exists() and stamp.exists() and stamp.read_text() == key:
        return str(target)
    print("compiling", source.relative_to(CSRC.parent), flush=True)
    stamp.unlink(missing_ok=True)
    done = subprocess.run([*command, str(source), "-o", str(target)], capture_output=True, text=True)
    target.with_suffix(".log").write_text(done.stdout + done.stderr)
    if done.returncode:
        raise SystemExit(f"{' '.join(done.args)}\n{done.stdout}{done.stderr}\n{toolchain.COMPILERS}")
    stamp.write_text(key)
    return str(target)


def _key(source: Path, command: list[str]) -> str:
    """A digest of everything an object file depends on.

    Instead of include paths, PyTorch's version counts, since build isolation changes the paths; macros that name the
    build count only in sources that use them.
    """
    import torch

    digest = hashlib.sha256(torch.__version__.encode())
    text = source.read_text()
    names = [f"-D{name}" for name in ("PAL_FAST_SOURCE_DIGEST", "PAL_FAST_CUDA_ARCHITECTURES") if name not in text]
    flags = [part for part in command if not part.startswith(("-I", "-ffile-prefix-map", *names))]
    digest.update(" ".join(flags).encode())
    for path in [source, *sorted(_headers(source))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _headers(source: Path) -> set[Path]:
    """The files of csrc/ that a source includes, directly or indirectly."""
    found: set[Path] = set()
    left = [source]
    while left:
        path = left.pop()
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.MULTILINE):
            header = next((h for h in ((path.parent / name).resolve(), CSRC / name) if h.is_file()), None)
            if header and header not in found:
                found.add(header)
                left.append(header)
    return found


def _size(source: Path) -> int:
    return sum(path.stat().st_size for path in (source, *_headers(source)))

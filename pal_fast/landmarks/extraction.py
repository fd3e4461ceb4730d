"""Extraction of the landmarks of a folder of images: in batches, resumable, in shards, with its progress on the disk.

Every batch is a separate file in `OUTPUT.parts/`, written atomically, so that an interruption loses only the batch in
flight. When all images are done, the parts are joined into the output, also atomically.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from pal_fast.files import digest, remove_partial, remove_partial_in, write_text
from pal_fast.image_files import list_images, read_image
from pal_fast.landmarks.landmark_set import LandmarkSet, load_npz, merge, read_settings
from pal_fast.messages import first_few

#: The file in the parts folder that holds the settings.
RECORD: Final = "settings.json"

_READERS: Final = 4  # threads that decode images


class Predictor(Protocol):
    """`FaceAligner`, or a substitute for it."""

    def __call__(self, names: Sequence[str], files: Sequence[Path], images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Points (B, K, 2) and scores (B, K) of images (3, H, W) uint8; NaN for an image without a face."""
        ...


@dataclass(frozen=True)
class Outcome:
    """The result of an extraction.

    Attributes:
        landmarks: those of all readable images of the shard.
        resumed: how many of these images an earlier run had done.
        unreadable: "NAME: reason" of images that were left out; the next run tries them again.
    """

    landmarks: LandmarkSet
    resumed: int
    unreadable: tuple[str, ...]

    @property
    def faceless(self) -> list[str]:
        """Images in which no face was found."""
        found = self.landmarks.found.tolist()
        return [name for name, has in zip(self.landmarks.names, found, strict=True) if not has]


def shard_path(output: Path, shard: tuple[int, int]) -> Path:
    """landmarks.npz -> landmarks.shard-2-of-8.npz."""
    number, count = shard
    return output if count == 1 else output.with_name(f"{output.stem}.shard-{number}-of-{count}{output.suffix}")


def extract(
    images: str | Path,
    output: str | Path,
    predictor: Predictor,
    *,
    batch: int = 32,
    shard: tuple[int, int] = (1, 1),
    settings: dict[str, Any] | None = None,
    prune: bool = False,
    progress: bool | None = None,
) -> Outcome:
    """Extracts the landmarks of all images below a folder, or resumes an interrupted run.

    Existing landmarks count as done if they belong to the same images, that is, to the same names and contents.

    Args:
        images: the folder; names in the output are paths relative to it.
        output: an .npz; for a shard, `shard_path(output, shard)` is written.
        batch: images at a time.
        shard: (i, n), i from 1: every n-th image, starting with the i-th.
        settings: what the landmarks depend on. Stored with them; a run with other settings is an error.
        prune: drop existing landmarks whose images no longer exist; without it they are an error.
        progress: show a progress bar; None shows one only on a terminal.

    Raises: FileNotFoundError if there are no images; ValueError if existing landmarks were made with other settings or
        from other images; RuntimeError if another process is extracting to the same output.
    """
    folder, target = Path(images), shard_path(Path(output), shard)
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    if not 1 <= shard[0] <= shard[1]:
        raise ValueError(f"shard must be (i, n) with i from 1 to n, got {shard}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"no folder {target.parent} to write {target.name} to")
    names = list_images(folder)[shard[0] - 1 :: shard[1]]
    parts = target.with_name(f"{target.name}.parts")
    with _locked(parts):
        done = _resume(target, parts, {} if settings is None else settings)
        _check_same_images(folder, names, done, target, parts, prune)
        todo = [name for name in names if name not in done]
        unreadable: list[str] = []
        number = 1 + max((int(path.stem) for path in parts.glob("*.npz")), default=-1)
        with tqdm(total=len(names), initial=len(names) - len(todo), unit="image", disable=_hidden(progress)) as bar:
            for read in _read_batches(folder, todo, batch):
                unreadable += [f"{name}: {why}" for name, why in read if isinstance(why, str)]
                good = [(name, image) for name, image in read if not isinstance(image, str)]
                if good:
                    _predict(folder, good, predictor).save(parts / f"{number:08d}.npz")
                    number += 1
                bar.update(len(read))
        landmarks = _finish(target, parts, names, settings or {})
    if unreadable and not len(landmarks):
        raise OSError(f"none of the {len(unreadable)} images under {folder} can be read: {unreadable[0]}")
    return Outcome(landmarks, len(names) - len(todo), tuple(unreadable))


def _hidden(progress: bool | None) -> bool | None:
    return None if progress is None else not progress


class _Read(NamedTuple):
    """An image (3, H, W) uint8, and the digest of its file."""

    image: Tensor
    digest: str


def _predict(folder: Path, read: Sequence[tuple[str, _Read]], predictor: Predictor) -> LandmarkSet:
    names = tuple(name for name, _ in read)
    points, scores = predictor(names, [folder / name for name in names], [one.image for _, one in read])
    return LandmarkSet(points.float().cpu(), names, scores.float().cpu(), tuple(one.digest for _, one in read))


def _read_batches(folder: Path, names: Sequence[str], batch: int) -> Iterator[list[tuple[str, _Read | str]]]:
    """Batches of (name, image or why it cannot be read); the next two batches are decoded while one is processed."""

    def read(name: str) -> _Read | str:
        try:
            return _Read(read_image(folder / name), digest(folder / name))
        except OSError as error:
            return str(error)

    pending: list[list[tuple[str, Future[_Read | str]]]] = []
    rest = iter(names)
    with ThreadPoolExecutor(_READERS) as pool:
        try:
            while True:
                while len(pending) < 3 and (chosen := list(islice(rest, batch))):
                    pending.append([(name, pool.submit(read, name)) for name in chosen])
                if not pending:
                    return
                yield [(name, future.result()) for name, future in pending.pop(0)]
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _locked(parts: Path) -> Iterator[None]:
    """Locks the folder of parts for this process until it ends, however it ends. On Windows there is no lock."""
    parts.mkdir(exist_ok=True)
    lock = parts / "lock"
    with open(lock, "w") as file:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"another process is extracting into {parts}; --shard i/n divides the work"
                raise RuntimeError(message) from None
        try:
            yield
        finally:
            if parts.is_dir() and {path.name for path in parts.iterdir()} <= {lock.name, RECORD}:
                shutil.rmtree(parts, ignore_errors=True)  # nothing was done, so leave nothing behind


def _resume(target: Path, parts: Path, settings: dict[str, Any]) -> dict[str, str]:
    """The finished names with their images' digests. Raises ValueError if they were made with other settings."""
    remove_partial(target)
    remove_partial_in(parts)
    record, text = parts / RECORD, json.dumps(settings, sort_keys=True)
    kept = record.read_text() if record.is_file() else _known_settings(target) if target.is_file() else text
    if kept != text:
        raise ValueError(
            f"{target} or its parts were made with {kept}, not {text}: name another output, or remove {target} and "
            f"{parts}"
        )
    write_text(record, text)
    done: dict[str, str] = {}
    for path in _existing_files(target, parts):
        piece = load_npz(path)
        done.update(zip(piece.names, piece.digests or [""] * len(piece), strict=True))
    return done


def _check_same_images(
    folder: Path, names: Sequence[str], done: dict[str, str], target: Path, parts: Path, prune: bool
) -> None:
    """Raises ValueError if finished landmarks belong to other images than `names` below `folder`.

    Args: done, the digest of each image whose landmarks exist.
    """
    way_out = f"name another output, or remove {target} and {parts}"
    gone = sorted(done.keys() - set(names))
    if gone and not prune:
        raise ValueError(
            f"{target} or its parts hold landmarks of {len(gone)} images that are not among the {len(names)} to "
            f"extract from {folder} ({first_few(gone, 3)}): {way_out}; prune (--prune) drops these landmarks"
        )
    held = [name for name in names if name in done]
    with ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(lambda name: digest(folder / name), held))
    other = [name for name, now in zip(held, found, strict=True) if done[name] != now]
    if other:
        raise ValueError(
            f"{target} or its parts hold landmarks of {len(other)} images whose names are the same as in {folder}, but "
            f"not their contents ({first_few(other, 3)}): {way_out}"
        )


def _known_settings(target: Path) -> str:
    return read_settings(target) or "settings that it does not record"


def _existing_files(target: Path, parts: Path) -> list[Path]:
    return [*([target] if target.is_file() else []), *sorted(parts.glob("*.npz"))]


def _finish(target: Path, parts: Path, names: Sequence[str], settings: dict[str, Any]) -> LandmarkSet:
    """Joins the parts, writes the output and removes the parts. Keeps only `names`."""
    pieces = [load_npz(path) for path in _existing_files(target, parts)]
    if not pieces:
        shutil.rmtree(parts)
        return LandmarkSet(torch.zeros(0, 1, 2), ())
    joined = merge(pieces, overlap=True)
    where = {name: row for row, name in enumerate(joined.names)}
    landmarks = joined.select([where[name] for name in names if name in where])
    landmarks.save(target, settings=json.dumps(settings, sort_keys=True))
    shutil.rmtree(parts)
    return landmarks

"""Extraction resumes after any interruption and any change of the images with the same result."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pal_fast.landmarks import LandmarkSet
from pal_fast.landmarks.extraction import extract

pytest.importorskip("PIL")

from PIL import Image
from support.extraction import COUNT, StubPredictor, all_names, check


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("CUDA out of memory")])
def test_an_interruption_loses_only_the_batch_in_flight(folder: Path, tmp_path: Path, error: BaseException) -> None:
    output = tmp_path / "m.npz"
    first = StubPredictor(2, error)
    with pytest.raises(type(error)):
        extract(folder, output, first, batch=3)
    assert not output.exists()
    second = StubPredictor()
    outcome = extract(folder, output, second, batch=3)
    assert outcome.resumed == 6
    assert not set(first.seen) & set(second.seen)
    check(output, all_names())
    extract(folder, tmp_path / "whole.npz", StubPredictor(), batch=3)
    assert output.read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_a_full_disk_keeps_the_finished_batches(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "m.npz"
    real, left = os.fsync, [4]  # one call for the settings, then one per batch

    def fsync(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        extract(folder, output, StubPredictor(), batch=3)
    assert not list(tmp_path.rglob("*.partial"))
    monkeypatch.setattr(os, "fsync", real)
    assert extract(folder, output, StubPredictor(), batch=3).resumed == 9
    check(output, all_names())


SLOW = """
import sys, time
from support.extraction import StubPredictor
from pal_fast.landmarks.extraction import extract
class Slow(StubPredictor):
    def __call__(self, *given):
        time.sleep(0.2)
        return super().__call__(*given)
extract(sys.argv[1], sys.argv[2], Slow(), batch=1)
"""


def test_extraction_resumes_after_a_killed_process(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.npz"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(folder), str(output)], env=environment)
    parts = tmp_path / "m.npz.parts"
    deadline = time.monotonic() + 60
    while len(list(parts.glob("*.npz"))) < 3:
        assert process.poll() is None, "the process ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list(parts.glob("*.npz")))
    assert 3 <= done < COUNT
    assert not output.exists()
    predictor = StubPredictor()
    assert extract(folder, output, predictor).resumed == done
    assert len(predictor.seen) == COUNT - done
    check(output, all_names())
    assert not list(tmp_path.rglob("*.partial"))


def test_new_images_are_added(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.npz"
    extract(folder, output, StubPredictor())
    Image.fromarray(np.full((8, 9, 3), 50, np.uint8)).save(folder / "50.png")
    predictor = StubPredictor()
    extract(folder, output, predictor)
    assert predictor.seen == ["50.png"]
    check(output, all_names() | {"50.png"})


def test_landmarks_of_deleted_images_are_dropped_only_with_prune(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.npz"
    extract(folder, output, StubPredictor())
    before = output.read_bytes()
    (folder / "0" / "00.png").unlink()
    with pytest.raises(
        ValueError, match=r"of 1 images that are not among the 10 .* \(0/00\.png\): name another .*prune"
    ):
        extract(folder, output, StubPredictor())
    assert output.read_bytes() == before
    assert extract(folder, output, StubPredictor(), prune=True).resumed == COUNT - 1
    check(output, all_names() - {"0/00.png"})


def write_image(path: Path, value: int) -> None:
    """Writes an image of one grey value; the file's length is the same for every value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 9, 3), value, np.uint8)).save(path.with_suffix(".bmp"))


@pytest.mark.parametrize("finished", [True, False])
def test_images_of_the_same_names_in_another_folder_are_not_confused(finished: bool, tmp_path: Path) -> None:
    output = tmp_path / "m.npz"
    for value in range(4):
        write_image(tmp_path / "train" / f"{value}", value)
        write_image(tmp_path / "test" / f"{value}", value if value < 2 else 100 + value)
    if finished:
        extract(tmp_path / "train", output, StubPredictor(), batch=1)
    else:
        with pytest.raises(KeyboardInterrupt):
            extract(tmp_path / "train", output, StubPredictor(3, KeyboardInterrupt()), batch=1)
    predictor = StubPredictor()
    message = (
        rf"of {2 if finished else 1} images whose names are the same as in .*test, "
        r"but not their contents \(2\.bmp.*: name another"
    )
    with pytest.raises(ValueError, match=message):
        extract(tmp_path / "test", output, predictor)
    assert predictor.seen == []
    assert extract(tmp_path / "train", output, StubPredictor()).resumed == (4 if finished else 3)
    check(output, {f"{value}.bmp" for value in range(4)})


def test_a_data_set_that_was_moved_counts_as_done(folder: Path, tmp_path: Path) -> None:
    extract(folder, tmp_path / "m.npz", StubPredictor())
    moved = folder.rename(tmp_path / "elsewhere")
    assert extract(moved, tmp_path / "m.npz", StubPredictor()).resumed == COUNT


def test_landmarks_without_a_record_of_their_images_are_not_resumed(folder: Path, tmp_path: Path) -> None:
    names = tuple(sorted(all_names()))
    LandmarkSet(torch.zeros(COUNT, 68, 2), names).save(tmp_path / "m.npz", settings="{}")
    with pytest.raises(ValueError, match=f"landmarks of {COUNT} images whose names are the same as in"):
        extract(folder, tmp_path / "m.npz", StubPredictor())


def test_unreadable_images_are_skipped_named_and_retried(folder: Path, tmp_path: Path) -> None:
    broken = folder / "0" / "04.png"
    good = broken.read_bytes()
    broken.write_bytes(good[:40])
    outcome = extract(folder, tmp_path / "m.npz", StubPredictor(), batch=3)
    assert len(outcome.unreadable) == 1
    assert outcome.unreadable[0].startswith("0/04.png: ")
    check(tmp_path / "m.npz", all_names() - {"0/04.png"})
    broken.write_bytes(good)
    predictor = StubPredictor()
    extract(folder, tmp_path / "m.npz", predictor)
    assert predictor.seen == ["0/04.png"]
    check(tmp_path / "m.npz", all_names())

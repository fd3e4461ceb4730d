"""Extraction resumes after any interruption with the same result, shards merge, and no partial files remain."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pal_fast import cli
from pal_fast.landmarks import LandmarkSet, read_landmark_set
from pal_fast.landmarks.extraction import extract, shard_path

pytest.importorskip("PIL")

from PIL import Image

COUNT = 11


class StubPredictor:
    """Stub for the network: every landmark's x is the image's first pixel value, and every fourth image has no face."""

    def __init__(self, fail_at: int | None = None, error: BaseException | None = None) -> None:
        self.seen: list[str] = []
        self.batches = 0
        self.fail_at, self.error = fail_at, error

    def __call__(self, names: Sequence[str], files: Sequence[Path], images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        if self.batches == self.fail_at and self.error is not None:
            raise self.error
        self.batches += 1
        self.seen += names
        values = torch.stack([image[0, 0, 0].float() for image in images])
        points = torch.stack([values[:, None].expand(-1, 68), torch.arange(68.0).expand(len(images), -1)], -1)
        points[values % 4 == 3] = torch.nan
        return points, points[..., 0] / 255


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k in range(COUNT):
        path = tmp_path / "images" / f"{k % 2}" / f"{k:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 9, 3), k, np.uint8)).save(path)
    return tmp_path / "images"


def value_of(name: str) -> int:
    return int(Path(name).stem)


def check(path: Path, names: set[str] | None = None) -> None:
    marks = read_landmark_set(path)
    assert list(marks.names) == sorted(marks.names)
    if names is not None:
        assert set(marks.names) == names
    for name, points, found in zip(marks.names, marks.points, marks.found, strict=True):
        assert bool(found) == (value_of(name) % 4 != 3)
        assert not found or bool((points[:, 0] == value_of(name)).all())


def all_names() -> set[str]:
    return {f"{k % 2}/{k:02d}.png" for k in range(COUNT)}


def test_the_result_holds_all_images_with_scores_and_lists_those_without_a_face(folder: Path, tmp_path: Path) -> None:
    outcome = extract(folder, tmp_path / "m.npz", StubPredictor(), batch=4)
    check(tmp_path / "m.npz", all_names())
    assert outcome.faceless == ["1/03.png", "1/07.png"]
    assert outcome.resumed == 0
    scores = read_landmark_set(tmp_path / "m.npz").scores
    assert scores is not None
    assert scores[1, 0] == pytest.approx(2 / 255)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "m.npz"]


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
from support_numbers import StubPredictor
from pal_fast.landmarks.extraction import extract
class Slow(StubPredictor):
    def __call__(self, *given):
        time.sleep(0.2)
        return super().__call__(*given)
extract(sys.argv[1], sys.argv[2], Slow(), batch=1)
"""


def test_extraction_resumes_after_a_killed_process(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.npz"
    source = Path(__file__).read_text().split("class StubPredictor")[1].split("@pytest.fixture")[0]
    head = "from __future__ import annotations\nimport torch\nfrom pathlib import Path\n"
    (tmp_path / "support_numbers.py").write_text(f"{head}class StubPredictor{source}".replace("Sequence[", "list["))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
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


def test_other_settings_are_refused_during_and_after_an_extraction(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.npz"
    with pytest.raises(KeyboardInterrupt):
        extract(folder, output, StubPredictor(1, KeyboardInterrupt()), batch=3, settings={"boxes": "full"})
    with pytest.raises(ValueError, match=r'made with {"boxes": "full"}, not {"boxes": "detect"}'):
        extract(folder, output, StubPredictor(), settings={"boxes": "detect"})
    extract(folder, output, StubPredictor(), settings={"boxes": "full"})
    with pytest.raises(ValueError, match="made with"):
        extract(folder, output, StubPredictor(), settings={"boxes": "detect"})


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


def test_shards_partition_the_images_and_merge_joins_them(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "m.npz"
    seen: list[str] = []
    for number in (1, 2, 3):
        predictor = StubPredictor()
        extract(folder, output, predictor, batch=2, shard=(number, 3))
        seen += predictor.seen
    assert sorted(seen) == sorted(all_names())
    files = [str(shard_path(output, (number, 3))) for number in (1, 2, 3)]
    assert files[1].endswith("m.shard-2-of-3.npz")
    assert cli.main(["merge", *files[:2], "-o", str(output)]) == 2
    assert "m was extracted in 3 shards; missing from the files: 3" in capsys.readouterr().err
    assert cli.main(["merge", *files, "-o", str(output)]) == 0
    check(output, all_names())


def test_merge_keeps_the_extraction_settings_and_refuses_a_mix(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "m.npz"
    files = [str(shard_path(output, (number, 2))) for number in (1, 2)]
    extract(folder, output, StubPredictor(), shard=(1, 2), settings={"boxes": "full", "flip": True})
    extract(folder, output, StubPredictor(), shard=(2, 2), settings={"boxes": "detect", "flip": True})
    assert cli.main(["merge", *files, "-o", str(output)]) == 2
    message = capsys.readouterr().err
    assert "made with the same settings" in message
    assert all(f'"boxes": "{boxes}"' in message for boxes in ("full", "detect"))
    assert not output.exists()
    Path(files[1]).unlink()
    extract(folder, output, StubPredictor(), shard=(2, 2), settings={"boxes": "full", "flip": True})
    assert cli.main(["merge", *files, "-o", str(output)]) == 0
    check(output, all_names())
    # The merged file is refused with other settings and counts as done with the same ones.
    with pytest.raises(ValueError, match=r'made with {"boxes": "full", "flip": true}, not'):
        extract(folder, output, StubPredictor(), settings={"boxes": "detect", "flip": True})
    assert extract(folder, output, StubPredictor(), settings={"boxes": "full", "flip": True}).resumed == COUNT


def test_a_refusal_or_interruption_before_the_first_batch_leaves_no_files(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.npz"
    with pytest.raises(KeyboardInterrupt):
        extract(folder, output, StubPredictor(0, KeyboardInterrupt()))
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    extract(folder, output, StubPredictor(), settings={"boxes": "full"})
    with pytest.raises(ValueError, match="made with"):
        extract(folder, output, StubPredictor(), settings={"boxes": "detect"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "m.npz"]


def test_a_terminal_shows_a_progress_bar_that_counts_earlier_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        extract(folder, tmp_path / "m.npz", StubPredictor(1, KeyboardInterrupt()), batch=4, progress=False)
    assert capsys.readouterr().err == ""
    extract(folder, tmp_path / "m.npz", StubPredictor(), batch=4, progress=True)
    shown = capsys.readouterr().err.split("\r")
    assert f"4/{COUNT}" in shown[1]
    assert f"{COUNT}/{COUNT}" in shown[-1]


def test_two_processes_cannot_write_the_same_output(folder: Path, tmp_path: Path) -> None:
    def second(*given: object) -> tuple[Tensor, Tensor]:
        with pytest.raises(RuntimeError, match="another process is extracting"):
            extract(folder, tmp_path / "m.npz", StubPredictor())
        return StubPredictor()(*given)  # type: ignore[arg-type]

    extract(folder, tmp_path / "m.npz", second)
    check(tmp_path / "m.npz", all_names())


def test_a_missing_folder_is_reported_before_any_network_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pal_fast.landmarks.fan.FaceAligner", None)
    assert cli.main(["landmarks", str(tmp_path / "wrong"), "-o", str(tmp_path / "m.npz")]) == 2
    assert f"there is no image folder {tmp_path / 'wrong'}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments_are_named_and_leave_no_files(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, named in (
        (["--shard", "3/2"], "--shard must be i/n"),
        (["-o", "m.txt"], "--output must be an .npz"),
        (["--boxes", "ful"], "boxes must be detect, full"),
    ):
        given = ["landmarks", str(folder), "-o", str(tmp_path / "m.npz"), *arguments]
        assert cli.main(given) == 2
        assert named in capsys.readouterr().err
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match="no image under"):
        extract(tmp_path / "nothing", tmp_path / "m.npz", StubPredictor())
    with pytest.raises(FileNotFoundError, match="no folder"):
        extract(folder, tmp_path / "absent" / "m.npz", StubPredictor())
    with pytest.raises(ValueError, match="batch"):
        extract(folder, tmp_path / "m.npz", StubPredictor(), batch=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "nothing"]

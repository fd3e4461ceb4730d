"""Extraction writes all images, shards merge, and refusals leave no partial files."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from pal_fast import cli
from pal_fast.landmarks import read_landmark_set
from pal_fast.landmarks.extraction import extract, shard_path

pytest.importorskip("PIL")


from support.extraction import COUNT, StubPredictor, all_names, check


def test_the_result_holds_all_images_with_scores_and_lists_those_without_a_face(folder: Path, tmp_path: Path) -> None:
    outcome = extract(folder, tmp_path / "m.npz", StubPredictor(), batch=4)
    check(tmp_path / "m.npz", all_names())
    assert outcome.faceless == ["1/03.png", "1/07.png"]
    assert outcome.resumed == 0
    scores = read_landmark_set(tmp_path / "m.npz").scores
    assert scores is not None
    assert scores[1, 0] == pytest.approx(2 / 255)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "m.npz"]


def test_other_settings_are_refused_during_and_after_an_extraction(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.npz"
    with pytest.raises(KeyboardInterrupt):
        extract(folder, output, StubPredictor(1, KeyboardInterrupt()), batch=3, settings={"boxes": "full"})
    with pytest.raises(ValueError, match=r'made with {"boxes": "full"}, not {"boxes": "detect"}'):
        extract(folder, output, StubPredictor(), settings={"boxes": "detect"})
    extract(folder, output, StubPredictor(), settings={"boxes": "full"})
    with pytest.raises(ValueError, match="made with"):
        extract(folder, output, StubPredictor(), settings={"boxes": "detect"})


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

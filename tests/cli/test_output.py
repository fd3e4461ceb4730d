"""--output is checked before any work: the file's extension and whether it can be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from pal_fast import cli
from pal_fast.files import check_writable

#: Each command with arguments that it would refuse later or work on for a long time.
COMMANDS = {
    "report": (["report", "no-run"], ("rep.pdf", "rep.html"), ".html or .htm"),
    "evaluate": (["evaluate", "no-run"], ("ev.csv", "ev.json"), ".json"),
    "merge": (["merge", "no.npz"], ("m.txt", "m.npz"), ".npz"),
    "export": (["export", "no-run"], ("a.xyz", "a.pt2"), ".pt2 or .onnx"),
    "export torch": (["export", "no-run", "--format", "torch"], ("a.onnx", "a.pt2"), ".pt2"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unsupported_extension_is_refused_first(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, (wrong, _), endings = COMMANDS[command]
    assert cli.main([*words, "-o", str(tmp_path / wrong)]) == 2
    assert f"--output must end in {endings}, got '{tmp_path / wrong}'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unwritable_location_is_refused_first(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, (_, right), _ = COMMANDS[command]
    assert cli.main([*words, "-o", str(tmp_path / "absent" / right)]) == 2
    assert f"there is no folder {tmp_path / 'absent'}" in capsys.readouterr().err
    (tmp_path / right).mkdir()
    assert cli.main([*words, "-o", str(tmp_path / right)]) == 2
    assert f"cannot write {tmp_path / right}: it is a folder" in capsys.readouterr().err


def test_the_demo_does_not_train_for_an_image_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("pal_fast.demo.run", None)
    for place in ("/proc/d.png", "/proc/a/d.png"):
        assert cli.main(["demo", "-o", place]) == 2
        assert f"cannot write {place}: " in capsys.readouterr().err


def test_checking_the_output_leaves_no_file_and_keeps_an_existing_one(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("a picture")
    check_writable(tmp_path / "a.png")
    check_writable(tmp_path / "b" / "c" / "d.png", makes_folder=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_text() == "a picture"

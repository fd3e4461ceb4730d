"""Files that cannot be read or written are named as the user gave them."""

from __future__ import annotations

import tempfile

import pytest
import torch

from pal_fast import cli
from pal_fast.files import atomic_write
from pal_fast.landmarks import LandmarkSet

MARKS = LandmarkSet(torch.rand(2, 5, 2) * 30, ("a", "b"))


def test_a_missing_image_to_explain_is_named_in_the_error(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    MARKS.save(tmp_path / "m.npz")
    absent, picture = tmp_path / "absent.png", tmp_path / "p.png"
    assert cli.main(["explain", str(absent), "--landmarks", str(tmp_path / "m.npz"), "-o", str(picture)]) == 2
    assert capsys.readouterr().err == f"pal-fast explain: error: there is no image file {absent}\n"


@pytest.mark.parametrize("name", ["m.npz", "m.xml", "folder"])
def test_an_unwritable_output_of_convert_is_named_in_the_error(name, tmp_path, capsys, monkeypatch):
    def refused(*, prefix, suffix, dir):
        raise PermissionError(13, "Permission denied", f"{dir}/{prefix}x{suffix}")

    MARKS.save(tmp_path / "given.npz")
    monkeypatch.setattr(tempfile, "mkstemp", refused)
    words = ["convert", str(tmp_path / "given.npz"), "-o", str(tmp_path / name)]
    assert cli.main([*words, *(["--to", "pts"] if name == "folder" else [])]) == 2
    stderr = capsys.readouterr().err
    assert stderr == f"pal-fast convert: error: cannot write {tmp_path / name}: Permission denied\n"


def test_convert_into_an_existing_folder_is_not_refused(tmp_path):
    MARKS.save(tmp_path / "given.npz")
    (tmp_path / "folder").mkdir()
    words = ["convert", str(tmp_path / "given.npz"), "--to", "pts"]
    assert cli.main([*words, "-o", str(tmp_path / "folder")]) == 0
    assert cli.main([*words, "-o", str(tmp_path / "made" / "folder")]) == 0
    assert sorted(path.name for path in (tmp_path / "made" / "folder").iterdir()) == ["a.pts", "b.pts"]


def test_a_failed_write_names_the_requested_file_and_not_the_temporary_one(tmp_path):
    path = tmp_path / "absent" / "x.npz"
    with pytest.raises(FileNotFoundError) as failure, atomic_write(path):
        pass
    assert str(failure.value) == f"cannot write {path}: No such file or directory"

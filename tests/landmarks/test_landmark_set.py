"""LandmarkSet: lookup by name, merging, atomic saving."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pal_fast import files
from pal_fast.landmarks import LandmarkFileError, LandmarkSet, merge, read_landmark_set, write_landmarks
from pal_fast.landmarks.landmark_set import load_npz


def numbered(*names: str, count: int = 2) -> LandmarkSet:
    """A set in which every coordinate of row k is k."""
    points = torch.arange(len(names)).float()[:, None, None].expand(-1, count, 2)
    return LandmarkSet(points.clone(), names)


@pytest.mark.parametrize(
    ("held", "asked", "rows"),
    [
        (["a.jpg", "a.png"], ["a.png", "a.jpg"], [1, 0]),
        (["happy/1", "sad/1"], ["sad/1.jpg", "happy/1.png", "fear/1.jpg"], [1, 0, -1]),
        (["train_00001_aligned", "test_0001"], ["Image/aligned/train_00001_aligned.jpg", "x/test_0001.png"], [0, 1]),
        (["Image/aligned/train_00001_aligned.jpg"], ["train_00001.jpg"], [0]),
        (["happy/1.jpg", "sad/1.jpg"], ["train/happy/1.jpg", "train/sad/1.jpg"], [0, 1]),
        (["train/happy/1.jpg"], ["test/happy/1.jpg"], [-1]),
        (["train/happy/1.jpg", "test/happy/1.jpg"], ["happy/1.jpg"], [-1]),
        (["1"], ["happy/1.jpg", "sad/1.jpg"], [-1, -1]),
        (["1"], ["1.jpg", "1.png"], [-1, -1]),
        (["1"], ["1.jpg", "sad/1.jpg"], [0, -1]),
        (["img.v2", "img"], ["img.v2.jpg", "img.jpg"], [0, 1]),
        ([], ["a"], [-1]),
        (["a"], [], []),
    ],
)
def test_rows_are_found_by_name_only_where_exactly_one_matches(
    held: list[str], asked: list[str], rows: list[int]
) -> None:
    assert numbered(*held).find(asked).tolist() == rows


def test_windows_path_separators_match() -> None:
    assert numbered("happy\\1.jpg").find(["happy/1.jpg"]).tolist() == [0]


def test_names_must_be_unique_and_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="1 names more than once: a"):
        numbered("a", "b", "a")
    with pytest.raises(ValueError, match=r"\(N, K, 2\)"):
        LandmarkSet(torch.zeros(3, 2), ("a", "b", "c"))
    with pytest.raises(ValueError, match="names must hold 2"):
        LandmarkSet(torch.zeros(2, 3, 2), ("a",))
    with pytest.raises(ValueError, match="scores must have shape"):
        LandmarkSet(torch.zeros(1, 3, 2), ("a",), torch.zeros(1, 2))


def test_npz_keeps_nan_and_scores_and_holds_no_pickle(tmp_path: Path, generator: torch.Generator) -> None:
    points = torch.randn(3, 68, 2, generator=generator)
    points[1] = torch.nan
    scores = torch.rand(3, 68, generator=generator)
    path = tmp_path / "m.npz"
    LandmarkSet(points, ("ä", "b/c.jpg", "d"), scores).save(path)
    with np.load(path, allow_pickle=False) as archive:
        assert set(archive.files) == {"names", "points", "scores"}
    back = read_landmark_set(path)
    assert back.names == ("ä", "b/c.jpg", "d")
    torch.testing.assert_close(back.points, points, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(back.scores, scores)  # type: ignore[arg-type]
    assert back.found.tolist() == [True, False, True]


def test_an_empty_set_is_saved_and_read(tmp_path: Path) -> None:
    LandmarkSet(torch.zeros(0, 68, 2), ()).save(tmp_path / "m.npz")
    assert read_landmark_set(tmp_path / "m.npz").points.shape == (0, 68, 2)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"\x93NUMPY nonsense"])
def test_a_broken_npz_is_refused_with_a_clear_message(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.npz"
    path.write_bytes(content)
    with pytest.raises(LandmarkFileError, match="no pickle"):
        read_landmark_set(path)


def test_an_npy_named_npz_is_refused_with_a_clear_message(tmp_path: Path) -> None:
    with open(tmp_path / "m.npz", "wb") as file:
        np.save(file, np.zeros((1, 2, 2)))
    with pytest.raises(LandmarkFileError, match="no pickle"):
        read_landmark_set(tmp_path / "m.npz")


def test_an_npz_with_pickled_objects_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    np.savez(path, names=np.array(["a"], dtype=object), points=np.zeros((1, 2, 2), np.float32))
    with pytest.raises(LandmarkFileError, match="no pickle"):
        read_landmark_set(path)


def test_merge_joins_in_the_order_of_names() -> None:
    merged = merge([numbered("d", "b"), numbered("c", "a")])
    assert merged.names == ("a", "b", "c", "d")
    assert merged.points[:, 0, 0].tolist() == [1, 1, 0, 0]
    assert merged.scores is None


def test_merge_refuses_incompatible_sets() -> None:
    with pytest.raises(ValueError, match="number of landmarks"):
        merge([numbered("a"), numbered("b", count=3)])
    with pytest.raises(ValueError, match="sets must not overlap, but 1 images are in more than one: a"):
        merge([numbered("a"), numbered("a", "b")])
    assert merge([numbered("z", "a"), numbered("a")], overlap=True).points[0, 0, 0] == 0
    with pytest.raises(ValueError, match="at least one"):
        merge([])


def failing_fsync(handle: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_only_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.npz"
    numbered("a").save(path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", failing_fsync)
    with pytest.raises(OSError, match=r"cannot write .*m\.npz: No space left on device; the previous file is kept"):
        numbered("a", "b").save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_halfway_leaves_the_previous_file(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    numbered("a").save(path)

    def half(file: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        files.write_bytes(path, half)
    assert load_npz(path).names == ("a",)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("format", ["npz", "wflw", "dlib-xml"])
def test_a_failed_write_of_landmarks_names_the_file(format: str, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match=r"cannot write .*marks\.npz: File too large$"):
            write_landmarks(tmp_path / "marks.npz", numbered("a", "b", count=98), format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_partial_files_of_a_killed_process_and_no_others_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "m[1].npz"
    numbered("a").save(path)
    left = tmp_path / ".m[1].npz.abc.partial"
    other = tmp_path / ".m.npz.abc.partial"
    left.touch()
    other.touch()
    files.remove_partial(path)
    assert sorted(tmp_path.iterdir()) == sorted([path, other])


@pytest.mark.parametrize("name", ["x.npy", "x", "x.npz.txt"])
def test_saving_under_a_name_that_could_not_be_read_back_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=rf"path must end in \.npz, got '.*{name}'"):
        numbered("a").save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []

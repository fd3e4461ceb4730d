"""Bad data is reported in one summary with counts and the first few names, as an error or as a warning."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pal_fast.data import open_dataset
from pal_fast.landmarks import LandmarkFileError, LandmarkSet
from pal_fast.landmarks.errors import NoLandmarksError

pytest.importorskip("PIL")

from support import drawn_datasets
from support.drawn_datasets import Written


@pytest.fixture
def folder(tmp_path: Path) -> Written:
    return drawn_datasets.write_folder(tmp_path / "folder", 16, 6, size=32, seed=4)


@pytest.fixture
def rafdb(tmp_path: Path) -> Written:
    """RAF-DB without the Annotation folder, which most copies lack."""
    root = tmp_path / "rafdb"
    written = drawn_datasets.write_folder(tmp_path / "source", 8, 8, size=32, seed=4)
    lines = []
    for row, name in enumerate(written.names):
        stem = f"train_{row + 1:05d}" if row < 8 else f"test_{row - 7:04d}"
        target = root / "Image" / "aligned" / f"{stem}_aligned.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        (written.root / name).rename(target)
        lines.append(f"{stem}.jpg {row % 7 + 1}\n")
    drawn_datasets.write(root / "EmoLabel" / "list_patition_label.txt", "".join(lines))
    return Written(root, written.names, written.expressions, written.landmarks)


@pytest.fixture(autouse=True)
def _ignore_class_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*classes without images")
        yield


def break_some(written: Written) -> tuple[str, str, str]:
    """One image missing (RAF-DB's list names it), one truncated, one that is not an image."""
    aligned = written.root / "Image" / "aligned"
    absent, cut, text = (f"Image/aligned/train_0000{k}_aligned.jpg" for k in (1, 2, 3))
    (written.root / absent).unlink()
    content = (aligned / "train_00002_aligned.jpg").read_bytes()
    (written.root / cut).write_bytes(content[: len(content) // 2])
    (written.root / text).write_text("<html>404</html>")
    return absent, cut, text


@pytest.mark.parametrize("verify", ["quick", "full"])
def test_missing_and_unreadable_images_are_reported_in_one_error(rafdb: Written, verify: str) -> None:
    absent, cut, text = break_some(rafdb)
    with pytest.raises(ValueError, match="bad_images='skip' leaves them out") as failure:
        open_dataset("rafdb", rafdb.root, "train", verify=verify)
    message = str(failure.value)
    assert f"of 8 images 1 absent ({absent}) and 2 unusable" in message
    assert f"{cut}: " in message
    assert "truncated" in message
    assert f"{text}: not an image" in message


def test_bad_images_can_be_skipped(rafdb: Written) -> None:
    bad = break_some(rafdb)
    with pytest.warns(UserWarning, match="1 absent .* and 2 unusable .*; they are left out"):
        dataset = open_dataset("rafdb", rafdb.root, "train", bad_images="skip")
    assert len(dataset) == 5
    assert not set(bad) & set(dataset.names)
    assert dataset.labels.tolist() == [3, 4, 5, 6, 0]
    assert all(dataset[k]["image"].shape == (3, 32, 32) for k in range(5))


def test_many_bad_images_are_counted_and_only_the_first_few_named(rafdb: Written) -> None:
    for k in range(1, 8):
        (rafdb.root / "Image" / "aligned" / f"train_0000{k}_aligned.jpg").unlink()
    with pytest.raises(ValueError, match=r"7 absent \(Image/aligned/train_00001_aligned\.jpg, .* and 2 more\)"):
        open_dataset("rafdb", rafdb.root, "train")


def test_an_image_damaged_after_opening_is_named_in_the_error(rafdb: Written) -> None:
    dataset = open_dataset("rafdb", rafdb.root, "train", verify="none")
    path = rafdb.root / dataset.names[2]
    path.write_bytes(b"")
    with pytest.raises(OSError, match=r"train_00003_aligned\.jpg cannot be read as an image"):
        dataset[2]


def test_a_malformed_label_line_is_reported_by_number(rafdb: Written) -> None:
    labels = rafdb.root / "EmoLabel" / "list_patition_label.txt"
    for line in ("train_00009.jpg 8", "train_00009.jpg", "val_1.jpg 1"):
        labels.write_text(f"train_00001.jpg 1\n{line}\n")
        with pytest.raises(LandmarkFileError, match="line 2: expected an image name train_"):
            open_dataset("rafdb", rafdb.root, "train")


def test_landmarks_of_other_images_are_refused(folder: Written) -> None:
    marks = LandmarkSet(torch.zeros(3, 68, 2), ("x/1.jpg", "x/2.jpg", "x/3.jpg"))
    with pytest.raises(ValueError, match=r"landmarks of 3 images \(x/1\.jpg, .*\), but for none of the 16 images"):
        open_dataset("folder", folder.root, "train", landmarks=marks)
    empty = LandmarkSet(torch.zeros(0, 68, 2), ())
    with pytest.raises(ValueError, match="landmarks of 0 images"):
        open_dataset("folder", folder.root, "train", landmarks=empty)


def test_landmarks_whose_names_match_more_than_one_split_are_refused(folder: Written) -> None:
    """In a file extracted from root/train, happy/0.jpg matches both train/happy/0.jpg and test/happy/0.jpg."""
    names = {name for name in folder.names if name.startswith("train/")}
    of_train = LandmarkSet(folder.landmarks[:16], tuple(name.removeprefix("train/") for name in folder.names[:16]))
    shared = [name for name in folder.names[16:] if name.replace("test/", "train/") in names]
    assert 0 < len(shared) < 6
    for split, count in (("test", len(shared)), ("train", len(shared))):
        with pytest.raises(ValueError, match=f"landmarks: {count} names match images of more than one split or class"):
            open_dataset("folder", folder.root, split, landmarks=of_train)
    # Without the other split's images of the same names, the match is unambiguous.
    for name in shared:
        (folder.root / name).unlink()
    assert open_dataset("folder", folder.root, "train", landmarks=of_train).landmarks.isfinite().all()
    with pytest.raises(NoLandmarksError, match="but for none of the"):
        open_dataset("folder", folder.root, "test", landmarks=of_train)


def test_landmarks_of_other_drawn_faces_are_refused() -> None:
    marks = LandmarkSet(torch.zeros(3, 68, 2), ("000000", "000001", "000004"))
    with pytest.raises(ValueError, match="2 names match images of more than one split"):
        open_dataset("drawn", "count=5,test_count=2,size=32", "train", landmarks=marks)


def test_images_without_landmarks_are_counted_and_the_first_few_named(folder: Written) -> None:
    points = folder.landmarks.clone()
    points[0] = torch.nan
    marks = LandmarkSet(points, folder.names).select(range(14))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = open_dataset("folder", folder.root, "train", landmarks=marks)
    messages = [str(warning.message) for warning in caught if "classes without" not in str(warning.message)]
    assert len(messages) == 1
    assert f"of 16 images 2 are not in landmarks ({', '.join(sorted(folder.names[14:16]))})" in messages[0]
    assert f"1 are in it without a face ({folder.names[0]})" in messages[0]
    missing = {folder.names[0], *folder.names[14:16]}
    for index, name in enumerate(dataset.names):
        assert bool(dataset[index]["landmarks"].isnan().all()) == (name in missing)


def test_landmarks_of_another_crop_are_detected(folder: Written) -> None:
    marks = LandmarkSet(folder.landmarks * 5 + 100, folder.names)
    with pytest.warns(UserWarning, match="in 16 of 16 images most landmarks lie outside the image"):
        open_dataset("folder", folder.root, "train", landmarks=marks)


def as_normalised(points: torch.Tensor, side: int, low: float) -> torch.Tensor:
    """Maps pixel coordinates of a square image to the range `low` to 1."""
    return (points + 0.5) / side * (1 - low) + low


@pytest.mark.parametrize("low", [0.0, -1.0])
@pytest.mark.parametrize("verify", ["quick", "none"])
def test_normalised_landmarks_are_refused_before_any_augmentation(folder: Written, low: float, verify: str) -> None:
    points = as_normalised(folder.landmarks, 32, low)
    points[3, 7] = 1.04  # a point beside the image does not hide the rest
    points[5] = torch.nan
    marks = LandmarkSet(points, folder.names)
    expected = (
        r"landmarks: in 15 of 15 annotated images all landmarks lie within 3 pixels of the image's corner \(x from "
        r".*\), as normalised ones do: .* in pixels of the image, 32 x 32 .*multiply normalised ones by \(width, height"
    )
    with pytest.raises(ValueError, match=expected):
        open_dataset("folder", folder.root, "train", landmarks=marks, verify=verify)


def test_landmarks_normalised_by_the_whole_image_are_refused_where_faces_are_cropped(tmp_path: Path) -> None:
    written = drawn_datasets.write_affectnet_full(tmp_path, 4, 2)
    marks = LandmarkSet(written.landmarks / torch.tensor([160.0, 110.0]), written.names)
    with pytest.raises(ValueError, match=r"in 4 of 4 annotated images .*as normalised ones do"):
        open_dataset("affectnet", written.root, "train", landmarks=marks)


def test_normalised_landmarks_of_drawn_faces_are_refused() -> None:
    dataset = open_dataset("drawn", "count=5,test_count=2,size=32", "train")
    marks = LandmarkSet(as_normalised(dataset.landmarks, 32, 0.0), dataset.names)
    with pytest.raises(ValueError, match="as normalised ones do"):
        open_dataset("drawn", "count=5,test_count=2,size=32", "train", landmarks=marks)


def test_empty_classes_are_named_and_an_empty_split_is_an_error(folder: Written) -> None:
    (folder.root / "train" / "boredom").mkdir()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = open_dataset("folder", folder.root, "train")
    assert any("classes without images: " in str(w.message) and "boredom" in str(w.message) for w in caught)
    assert "boredom" in dataset.classes
    assert dataset.class_counts[dataset.classes.index("boredom")] == 0
    for name in folder.names[16:]:
        (folder.root / name).unlink()
    with pytest.raises(ValueError, match="no image to use"):
        open_dataset("folder", folder.root, "test")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": "raf"}, "did you mean 'rafdb'"),
        ({"split": "val"}, "split must be one of 'train', 'test'"),
        ({"root": "/nowhere"}, "root must be the folder of folder"),
        ({"verify": "yes"}, "verify must be one of"),
        ({"bad_images": "ignore"}, "bad_images must be one of"),
        ({"classes": 40}, "classes must be from 1 to"),
        ({"classes": ("angry",)}, "did you mean 'anger'"),
        ({"classes": ("anger", "anger")}, "classes must be one or more distinct names"),
        ({"margin": 0.1}, "an option of folder"),
        ({"landmarks": "/nowhere.npz"}, "no landmarks at /nowhere.npz"),
    ],
)
def test_a_bad_argument_is_named_in_the_error(folder: Written, arguments: dict[str, object], named: str) -> None:
    given = {"name": "folder", "root": folder.root, "split": "train"} | arguments
    with pytest.raises((ValueError, FileNotFoundError), match=named):
        open_dataset(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["rafdb", "affectnet", "ferplus", "folder"])
def test_a_folder_with_other_contents_is_refused_with_a_clear_message(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"under|class folders"):
        open_dataset(name, tmp_path, "train")

"""Missing, broken or misplaced annotations of AffectNet and RAF-DB are reported in one error."""

from __future__ import annotations

from pathlib import Path

import pytest

from pal_fast.data import open_dataset
from pal_fast.landmarks import LandmarkFileError, LandmarkSet

pytest.importorskip("PIL")

from support import drawn_datasets

pytestmark = pytest.mark.filterwarnings("ignore:.*classes without images")


def test_landmarks_of_affectnets_other_split_are_refused(tmp_path: Path) -> None:
    written = drawn_datasets.write_affectnet_small(tmp_path, 4, 2, size=32)
    of_train = LandmarkSet(written.landmarks[:4], tuple(f"{k}.jpg" for k in range(4)))
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=r"2 names match images of more than one split .*0\.jpg for t?"):
            open_dataset("affectnet", written.root, split, landmarks=of_train)
    whole = LandmarkSet(written.landmarks, tuple(name.partition(".")[0] for name in written.names))
    assert open_dataset("affectnet", written.root, "test", landmarks=whole).landmarks.isfinite().all()


def test_missing_affectnet_annotations_are_reported_in_one_error(tmp_path: Path) -> None:
    written = drawn_datasets.write_affectnet_small(tmp_path, 4, 2, size=32)
    for k in (1, 3):
        (written.root / "train_set" / "annotations" / f"{k}_exp.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"no _exp\.npy for 2 images: 1\.jpg, 3\.jpg"):
        open_dataset("affectnet", written.root, "train")


def test_broken_affectnet_annotations_are_reported_in_one_error(tmp_path: Path) -> None:
    written = drawn_datasets.write_affectnet_small(tmp_path, 6, 2, size=32)
    annotations = written.root / "train_set" / "annotations"
    for kind in ("lnd", "exp"):
        kept = [(annotations / f"{k}_{kind}.npy").read_bytes() for k in range(5)]
        for k in range(5):
            (annotations / f"{k}_{kind}.npy").write_bytes(b"no array")
        with pytest.raises(LandmarkFileError, match=rf"6 readable files, found 5 .*0_{kind}\.npy.* and 2 more"):
            open_dataset("affectnet", written.root, "train")
        for k in range(5):
            (annotations / f"{k}_{kind}.npy").write_bytes(kept[k])


def test_affectnet_images_without_a_box_are_reported_in_one_error_or_skipped(tmp_path: Path) -> None:
    written = drawn_datasets.write_affectnet_full(tmp_path, 6, 2)
    path = written.root / "training.csv"
    path.write_text(path.read_text().replace(",40,24,64,64,", ",NULL,NULL,NULL,NULL,"))
    with pytest.raises(ValueError, match=r"3 of 6 images have no face box \(line 2 .*, line 4 .*, line 6 .*\); bad_im"):
        open_dataset("affectnet", written.root, "train")
    with pytest.warns(UserWarning, match="3 of 6 images have no face box .*; they are left out"):
        dataset = open_dataset("affectnet", written.root, "train", bad_images="skip")
    assert dataset.names == written.names[1:6:2]
    assert dataset[0]["image"].shape == (3, 80, 80)


def test_rafdb_images_without_annotation_are_reported_in_one_error_or_have_no_landmarks(tmp_path: Path) -> None:
    written = drawn_datasets.write_rafdb(tmp_path, 6, 2)
    (tmp_path / "Annotation" / "auto" / "train_00002_auto_attri.txt").unlink()
    (tmp_path / "Annotation" / "manual" / "train_00004_manu_attri.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 images have no .*_manu_attri\.txt: train_00004; bad_images='skip'"):
        open_dataset("rafdb", tmp_path, "train")
    with pytest.warns(UserWarning, match="2 of 6 images have no landmarks in rafdb's own annotation"):
        dataset = open_dataset("rafdb", tmp_path, "train", bad_images="skip")
    assert dataset.names == written.names[:6]
    found = dataset.landmarks.isfinite().all(-1)
    assert found.all(1).tolist() == found.any(1).tolist() == [True, False, True, False, True, True]
    for k in (1, 3, 5):
        (tmp_path / "Annotation" / "auto" / f"train_0000{k}_auto_attri.txt").write_text("1 2\nthree\n")
    with pytest.raises(LandmarkFileError, match=r"3 that are not: train_00001_auto_attri\.txt, line 2"):
        open_dataset("rafdb", tmp_path, "train", bad_images="skip")
    with pytest.warns(UserWarning, match="classes without images"):
        assert open_dataset("rafdb", tmp_path, "train", landmarks=False).landmark_count == 0


def test_affectnet_boxes_outside_the_image_are_named_in_the_error(tmp_path: Path) -> None:
    written = drawn_datasets.write_affectnet_full(tmp_path, 4, 2)
    path = written.root / "training.csv"
    path.write_text(path.read_text().replace(",40,24,64,64,", ",400,24,64,64,"))
    with pytest.raises(ValueError, match=r"2 unusable .*box begins outside the 160 x 110 pixels"):
        open_dataset("affectnet", written.root, "train")

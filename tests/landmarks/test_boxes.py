"""Known face boxes from AffectNet's list and RAF-DB's folder, up to the window that the network sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pal_fast.landmarks import LandmarkFileError
from pal_fast.landmarks.boxes import box_finder

pytest.importorskip("PIL")

from support import drawn_datasets

IMAGE = torch.zeros(3, 110, 160, dtype=torch.uint8)


def test_an_affectnet_list_gives_boxes_as_left_top_right_bottom(tmp_path: Path) -> None:
    written = drawn_datasets.write_affectnet_full(tmp_path, 4, 2)
    path = tmp_path / "training.csv"
    path.write_text(path.read_text().replace("3/00000002.jpg,40,24,64,64,", "3/00000002.jpg,NULL,NULL,NULL,NULL,"))
    find = box_finder(str(path))
    assert find is not None
    found = [find(name, Path(name), IMAGE) for name in written.names]
    assert found == [(40, 24, 104, 88), (64, 10, 144, 90), None, (64, 10, 144, 90), None, None]
    below = f"Manually_Annotated_Images/{written.names[1]}"  # the name when extracting from a parent folder
    assert find(below, Path(below), IMAGE) == (64, 10, 144, 90)


def test_the_rafdb_folder_gives_the_box_of_each_image(tmp_path: Path) -> None:
    written = drawn_datasets.write_rafdb(tmp_path, 3, 2)
    folder = tmp_path / "Annotation" / "boundingbox"
    (folder / "test_0002_boundingbox.txt").unlink()
    find = box_finder(str(folder))
    assert find is not None
    originals = sorted((tmp_path / "Image" / "original").iterdir())
    boxes = {path.name: find(path.name, path, IMAGE) for path in originals}
    assert boxes.pop("test_0002.jpg") is None
    assert len(boxes) == 4
    for name, box in boxes.items():
        assert box is not None
        assert box == tuple(map(float, (folder / f"{Path(name).stem}_boundingbox.txt").read_text().split()))
        manual = np.loadtxt(tmp_path / "Annotation" / "manual" / f"{Path(name).stem}_manu_attri.txt", max_rows=5)
        assert (manual >= box[:2]).all()
        assert (manual <= box[2:]).all()
    assert find(written.names[0], Path(), IMAGE) == boxes["train_00001.jpg"], "aligned images have the same stem"
    (folder / "train_00001_boundingbox.txt").write_text("1 2 three 4\n")
    with pytest.raises(LandmarkFileError, match=r"train_00001_boundingbox\.txt, line 1: expected four numbers"):
        find("train_00001.jpg", Path(), IMAGE)


def test_a_folder_without_boxes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no \*_boundingbox\.txt"):
        box_finder(str(tmp_path))

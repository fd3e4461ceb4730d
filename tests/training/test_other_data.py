"""Evaluating a trained network on another data set: classes are matched by name and not by position."""

from __future__ import annotations

import pytest

pytest.importorskip("accelerate", reason="accelerate is not installed (extra train)")

from support.drawn_datasets import write_affectnet_small, write_rafdb
from support.small_training import SMALL, quiet

from pal_fast import cli
from pal_fast.data import open_dataset
from pal_fast.training import TrainingConfig, evaluate, train

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with RAF-DB, AffectNet and a network trained on RAF-DB."""
    folder = tmp_path_factory.mktemp("other")
    write_rafdb(folder / "rafdb", 21, 14)
    write_affectnet_small(folder / "affectnet", 21, 14)
    options = {"data": "rafdb", "root": str(folder / "rafdb"), "epochs": 1, "batch": 16, "gallery": 0}
    train(TrainingConfig(**SMALL | options, weight=0), folder / "run", say=quiet)
    return folder


def test_labels_of_a_data_set_with_another_class_order_are_matched_by_name(folder):
    data = {"data": "affectnet", "root": str(folder / "affectnet"), "classes": 7}
    lines: list[str] = []
    found = evaluate(folder / "run", **data, workers=0, device="cpu", say=lines.append)
    own = open_dataset("affectnet", folder / "affectnet", "test", classes=7)
    rafdb = open_dataset("rafdb", folder / "rafdb", "test").classes
    assert found.classes == rafdb != own.classes
    assert sorted(found.classes) == sorted(own.classes)
    names = [own.classes[label] for label in own.labels.tolist()]
    assert [rafdb[label] for label in found.labels] == names
    for row, name in enumerate(rafdb):
        assert found.confusion[row].sum() == names.count(name)
    assert "affectnet has the classes in another order; its labels are matched by name" in lines


def test_different_classes_are_refused_listing_both_sets(folder, capsys):
    words = ["evaluate", str(folder / "run"), "--data", "affectnet", "--root", str(folder / "affectnet")]
    words += ["--workers", "0", "--device", "cpu"]
    assert cli.main(words) == 2
    stderr = capsys.readouterr().err
    assert "knows the classes surprise, fear" in stderr
    assert "but affectnet has neutral, happiness" in stderr
    assert "contempt: give data with the same classes, or fewer of them with classes (--classes)" in stderr
    assert cli.main([*words, "--classes", "7"]) == 0

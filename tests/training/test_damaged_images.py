"""An image damaged in its middle: found before training on request, else reported in one line during the epoch."""

from __future__ import annotations

import warnings

import pytest

pytest.importorskip("accelerate", reason="accelerate is not installed (extra train)")

import torch
from PIL import Image
from support.small_training import SMALL, quiet
from torch.utils.data import DataLoader, Dataset

from pal_fast import cli
from pal_fast.training import TrainingConfig, evaluate, train
from pal_fast.training.loading import errors_in_one_line
from pal_fast.training.run_folder import RunFolder


@pytest.fixture
def faces(tmp_path):
    """Noise, which does not compress, so that `damage` hits pixel data and leaves the file's header and end intact."""
    for split in ("train", "test"):
        for name in "ab":
            folder = tmp_path / "faces" / split / name
            folder.mkdir(parents=True)
            for k in range(8):
                noise = torch.randint(0, 255, (32, 32, 3), dtype=torch.uint8)
                Image.fromarray(noise.numpy()).save(folder / f"{k}.png")
    return tmp_path / "faces"


def damage(path):
    content = bytearray(path.read_bytes())
    content[300:400] = bytes(100)
    path.write_bytes(content)


def options(faces, **more):
    data = {"data": "folder", "root": str(faces), "bad_images": "skip", "weight": 0, "epochs": 1, "batch": 4}
    return TrainingConfig(**SMALL | data | more)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_epoch_that_reads_a_damaged_image_fails_in_one_line_with_a_remedy(workers, faces, tmp_path):
    damage(faces / "train" / "a" / "3.png")
    with pytest.raises(OSError, match=r"3\.png cannot be read as an image: ") as failure:
        train(options(faces, workers=workers), tmp_path / "run", say=quiet)
    message = str(failure.value)
    assert "\n" not in message
    assert "Traceback" not in message
    assert "--verify full" in message
    assert "--bad-images skip" in message


def test_full_verification_skips_or_refuses_a_damaged_image_before_training(faces, tmp_path):
    damage(faces / "train" / "a" / "3.png")
    with pytest.warns(UserWarning, match=r"1 unusable \(train/a/3\.png: .*\); they are left out"):
        result = train(options(faces, verify="full"), tmp_path / "run", say=quiet)
    assert result["steps"] == 15 // 4
    with pytest.raises(ValueError, match=r"1 unusable \(train/a/3\.png"):
        train(options(faces, verify="full", bad_images="error"), tmp_path / "other", say=quiet)
    assert not (tmp_path / "other").exists()


def test_the_command_accepts_the_verification_options(faces, tmp_path, capsys):
    damage(faces / "train" / "a" / "3.png")
    words = ["--data", "folder", "--root", str(faces), "--weight", "0", "--model", "small", "--size", "32"]
    assert cli.main(["train", *words, "--verify", "full", "--output", str(tmp_path / "run")]) == 2
    assert "1 unusable (train/a/3.png" in capsys.readouterr().err


def test_an_image_damaged_after_full_verification_is_named_without_that_remedy(faces, tmp_path, monkeypatch):
    config = options(faces, verify="full")

    def damaged_since(*given, **more):
        damage(faces / "train" / "a" / "3.png")
        return learner(*given, **more)

    from pal_fast.training import trainer

    learner = trainer.Learner
    monkeypatch.setattr(trainer, "Learner", damaged_since)
    with pytest.raises(OSError, match=r"3\.png cannot be read as an image: ") as failure:
        train(config, tmp_path / "run", say=quiet)
    assert "--verify" not in str(failure.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_evaluation_names_a_damaged_image_in_one_line(workers, faces, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(options(faces), tmp_path / "run", say=quiet)
    assert RunFolder(tmp_path / "run").result.exists()
    damage(faces / "test" / "b" / "7.png")
    with pytest.raises(OSError, match=r"7\.png cannot be read as an image: .*") as failure:
        evaluate(tmp_path / "run", workers=workers, device="cpu", say=quiet)
    assert "\n" not in str(failure.value)


class Broken(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise ValueError("what is: wrong")


@pytest.mark.parametrize("workers", [0, 1])
def test_other_errors_in_loader_workers_are_the_same_as_without_workers(workers):
    with pytest.raises(ValueError, match=r"^what is: wrong$"), errors_in_one_line("; a way out"):
        next(iter(DataLoader(Broken(), num_workers=workers)))

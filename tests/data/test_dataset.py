"""FaceDataset in memory, and sampling by class."""

from __future__ import annotations

import pytest
import torch

from pal_fast.data import FaceDataset, class_balanced_sampler, open_dataset
from pal_fast.data.ferplus import majority
from pal_fast.data.images import MemoryImages


def memory(labels: list[int], classes: int = 3) -> FaceDataset:
    images = MemoryImages(torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4))
    return FaceDataset(images, labels, [f"class {k}" for k in range(classes)])


def test_negative_indices_count_from_the_end_and_iteration_stops() -> None:
    dataset = memory([0, 1, 2])
    assert dataset[-1]["index"] == 2
    assert [sample["label"] for sample in dataset] == [0, 1, 2]  # type: ignore[attr-defined]
    with pytest.raises(IndexError, match="holds 3 images"):
        dataset[3]


def test_mismatched_shapes_are_named_in_the_error() -> None:
    images = MemoryImages(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"labels must have shape \(2,\)"):
        FaceDataset(images, [0], ["a"])
    with pytest.raises(ValueError, match="labels must be from 0 to 0"):
        FaceDataset(images, [0, 1], ["a"])
    with pytest.raises(ValueError, match=r"landmarks must have shape \(2, K, 2\)"):
        FaceDataset(images, [0, 0], ["a"], landmarks=torch.zeros(3, 68, 2))
    with pytest.raises(ValueError, match="names must hold 2"):
        FaceDataset(images, [0, 0], ["a"], names=["x"])


def test_normalised_landmarks_are_refused_where_the_image_is_larger_than_their_range(
    generator: torch.Generator,
) -> None:
    landmarks = torch.rand(2, 5, 2, generator=generator)
    images = MemoryImages(torch.zeros(2, 3, 40, 30, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"landmarks: in 2 of 2 annotated .* pixels of the image, 40 x 30 \(height x"):
        FaceDataset(images, [0, 0], ["a"], landmarks=landmarks)
    assert FaceDataset(images, [0, 0], ["a"], landmarks=landmarks + 14).landmark_count == 5
    small = MemoryImages(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    assert FaceDataset(small, [0, 0], ["a"], landmarks=landmarks).landmark_count == 5
    absent = torch.full((2, 5, 2), torch.nan)
    assert FaceDataset(images, [0, 0], ["a"], landmarks=absent).landmark_count == 5


def test_the_balanced_sampler_draws_every_class_equally_often(generator: torch.Generator) -> None:
    dataset = memory([0] * 900 + [1] * 90 + [2] * 10)
    drawn = torch.tensor(list(class_balanced_sampler(dataset, generator)) * 1)
    assert len(drawn) == 1000
    counts = dataset.labels[drawn].bincount(minlength=3)
    assert int((counts - 1000 / 3).abs().max()) < 5 * (1000 * 2 / 9) ** 0.5


def test_the_balanced_sampler_is_reproducible_and_skips_empty_classes() -> None:
    dataset = memory([0] * 50 + [2] * 50)
    first, second = (list(class_balanced_sampler(dataset, torch.Generator().manual_seed(3))) for _ in range(2))
    assert first == second
    assert set(dataset.labels[torch.tensor(first)].tolist()) == {0, 2}
    with pytest.raises(ValueError, match="got none"):
        class_balanced_sampler(memory([]), None)


def test_an_in_place_transform_does_not_change_the_data_set() -> None:
    pytest.importorskip("torchvision")

    def overwrite(sample: dict) -> dict:  # type: ignore[type-arg]
        sample["landmarks"].mul_(0)
        return sample

    dataset = open_dataset("drawn", "count=2,size=16", "train", transform=overwrite)
    before = dataset.landmarks.clone()
    assert dataset[0]["landmarks"].abs().sum() == 0
    assert torch.equal(dataset.landmarks, before)


@pytest.mark.parametrize(
    ("votes", "label"),
    [
        ([4, 0, 0, 1, 3, 2, 0, 0, 0, 0], None),  # four of nine valid votes
        ([6, 0, 0, 1, 3, 1, 0, 0, 0, 0], 0),
        ([5, 0, 5, 0, 0, 0, 0, 0, 0, 0], None),
        ([0, 0, 0, 0, 0, 0, 0, 9, 1, 0], 7),
        ([0, 0, 0, 0, 0, 0, 0, 0, 9, 1], None),  # unknown
        ([0, 0, 0, 0, 0, 0, 0, 0, 0, 10], None),  # no face
        ([1, 1, 1, 1, 1, 1, 1, 1, 1, 1], None),
        ([1, 1, 1, 1, 1, 0, 2, 1, 1, 1], 6),
    ],
)
def test_ferplus_labels_are_the_majority_vote(votes: list[int], label: int | None) -> None:
    assert majority([float(vote) for vote in votes]) == label

"""The transforms check the first faces for normalised landmarks while these can be told from pixel coordinates."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

pytest.importorskip("torchvision")

from pal_fast.data import FaceDataset, Landmarks, eval_transform, train_transform
from pal_fast.data.images import MemoryImages

SIDE = 40
IMAGE = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
NORMALISED = torch.linspace(0.1, 0.9, 10).view(5, 2)
PIXELS = NORMALISED * SIDE - 0.5
NONE = torch.full((5, 2), torch.nan)
NOT_FOUND = torch.zeros(5, 2)


def warnings_for(transform: Any, *faces: Tensor, image: Tensor = IMAGE) -> list[str]:
    """The messages of the warnings raised as these faces are transformed in order."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for points in faces:
            transform({"image": image, "landmarks": points})
    assert all(warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("make", [train_transform, eval_transform])
@pytest.mark.parametrize("points", [NORMALISED, NORMALISED * 2 - 1])
def test_the_first_normalised_face_warns_and_the_second_is_refused(make: Any, points: Tensor) -> None:
    transform = make(48)
    (text,) = warnings_for(transform, points)
    assert "landmarks: all of this face's lie within 3 pixels of the image's corner" in text
    assert "in pixels of the image, 40 x 40 (height x width); multiply normalised ones by (width, height)" in text
    with pytest.raises(ValueError, match=r"as normalised ones do.*; so did the face before"):
        warnings_for(transform, points)


@pytest.mark.parametrize("kind", [Tensor.numpy, Tensor.double, lambda points: Landmarks(points, canvas_size=(40, 40))])
def test_landmarks_of_any_type_are_checked(kind: Any) -> None:
    assert len(warnings_for(eval_transform(48), kind(NORMALISED))) == 1
    assert warnings_for(eval_transform(48), kind(PIXELS)) == []


def test_a_face_in_pixels_ends_the_check() -> None:
    assert warnings_for(eval_transform(48), PIXELS, *[NORMALISED] * 3) == []
    assert len(warnings_for(eval_transform(48), NORMALISED, PIXELS, *[NORMALISED] * 3)) == 1


def test_faces_without_landmarks_defer_the_check_to_the_next_face() -> None:
    assert len(warnings_for(eval_transform(48), NONE, NOT_FOUND, NONE, NORMALISED)) == 1
    small = torch.zeros(3, 4, 4, dtype=torch.uint8)
    transform = eval_transform(48)
    assert warnings_for(transform, NORMALISED, NORMALISED, image=small) == [], "3 pixels are most of such an image"
    assert len(warnings_for(transform, NORMALISED)) == 1


def test_some_missing_points_do_not_hide_the_others() -> None:
    points = NORMALISED.clone()
    points[2] = torch.nan
    assert len(warnings_for(eval_transform(48), points)) == 1


@pytest.mark.parametrize("around", [lambda transform: transform, lambda transform: lambda sample: transform(sample)])
def test_faces_of_a_data_set_that_already_warned_are_not_checked_again(around: Any) -> None:
    points = torch.stack([NORMALISED, NORMALISED, PIXELS, PIXELS])
    images = MemoryImages(IMAGE.expand(4, 3, SIDE, SIDE))
    with pytest.warns(UserWarning, match=r"in 2 of 4 annotated images all landmarks lie within 3 pixels"):
        dataset = FaceDataset(images, [0] * 4, ["a"], landmarks=points, transform=around(eval_transform(SIDE)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for order in ((0, 1), (1, 0, 2), (3, 0, 1)):
            for index in order:
                assert torch.equal(dataset[index]["landmarks"], points[index])


class UserDataset(Dataset[dict[str, Any]]):
    def __init__(self) -> None:
        self.transform = train_transform(48)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.transform({"image": IMAGE, "landmarks": NORMALISED})


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:landmarks. all of this face")
def test_a_loader_of_normalised_landmarks_fails_at_its_first_batch(workers: int) -> None:
    with pytest.raises(ValueError, match="as normalised ones do"):
        next(iter(DataLoader(UserDataset(), batch_size=4, num_workers=workers)))

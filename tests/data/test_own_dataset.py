"""The transforms in a user's own data set: images and landmarks in all common forms, or a clear error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pal_fast.data import FaceDataset, eval_transform, train_transform
from pal_fast.data.images import MemoryImages

pytest.importorskip("torchvision")

from PIL import Image
from torchvision import tv_tensors

from pal_fast.data import Landmarks

HEIGHT, WIDTH = 40, 60


@pytest.fixture
def pixels(generator: torch.Generator) -> Tensor:
    """An image, (3, H, W) uint8."""
    return torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8, generator=generator)


@pytest.fixture
def points(generator: torch.Generator) -> Tensor:
    """Landmarks, (5, 2), with integer coordinates."""
    return (torch.rand(5, 2, generator=generator) * torch.tensor([WIDTH - 1.0, HEIGHT - 1.0])).round()


def as_array(pixels: Tensor) -> np.ndarray[Any, Any]:
    return pixels.permute(1, 2, 0).contiguous().numpy()


IMAGES: dict[str, Any] = {
    "PIL": lambda pixels: Image.fromarray(as_array(pixels)),
    "array": as_array,
    "tensor": lambda pixels: pixels,
    "floats in [0, 1]": lambda pixels: pixels.float() / 255,
    "tv_tensors.Image": tv_tensors.Image,
}
POINTS: dict[str, Any] = {
    "tensor": lambda points: points,
    "whole numbers": lambda points: points.long(),
    "array": lambda points: points.numpy(),
    "doubles": lambda points: points.double().numpy(),
    "KeyPoints": lambda points: tv_tensors.KeyPoints(points, canvas_size=(HEIGHT, WIDTH)),
    "Landmarks": lambda points: Landmarks(points, canvas_size=(HEIGHT, WIDTH)),
}


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("marks", POINTS)
@pytest.mark.parametrize("make", [train_transform, eval_transform])
def test_images_and_landmarks_of_any_type_give_the_same_result(
    make: Any, kind: str, marks: str, pixels: Tensor, points: Tensor, seed: int
) -> None:
    transform = make(48, **({"colour": 0.0} if make is train_transform else {}))
    torch.manual_seed(seed)
    wanted = transform(
        {"image": tv_tensors.Image(pixels), "landmarks": Landmarks(points, canvas_size=(HEIGHT, WIDTH)), "label": 3}
    )
    torch.manual_seed(seed)
    made = transform({"image": IMAGES[kind](pixels), "landmarks": POINTS[marks](points), "label": 3})
    assert made["label"] == 3
    assert made["image"].shape == (3, 48, 48)
    assert made["image"].dtype == torch.float32
    # floats are interpolated without rounding, bytes are rounded at each step
    torch.testing.assert_close(torch.Tensor(made["image"]), torch.Tensor(wanted["image"]), rtol=0, atol=0.03)
    torch.testing.assert_close(torch.Tensor(made["landmarks"].float()), torch.Tensor(wanted["landmarks"]))
    assert type(made["landmarks"]) is (Landmarks if marks == "Landmarks" else Tensor)
    assert type(made["image"]) is (tv_tensors.Image if kind == "tv_tensors.Image" else Tensor)


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_of_any_type_is_transformed_without_landmarks(kind: str, pixels: Tensor) -> None:
    for transform in (train_transform(48), eval_transform(48)):
        made = transform(IMAGES[kind](pixels))  # type: ignore[arg-type]
        assert made.shape == (3, 48, 48)  # type: ignore[attr-defined]
        assert made.dtype == torch.float32  # type: ignore[attr-defined]


def test_a_grey_or_transparent_image_becomes_rgb(points: Tensor) -> None:
    for mode in ("L", "RGBA", "P", "1"):
        image = Image.new(mode, (WIDTH, HEIGHT))
        assert eval_transform(48)({"image": image, "landmarks": points})["image"].shape == (3, 48, 48)


class UserDataset(Dataset[dict[str, Any]]):
    def __init__(self, pixels: Tensor, points: Tensor) -> None:
        self.image, self.points, self.transform = Image.fromarray(as_array(pixels)), points.numpy(), train_transform(48)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.transform({"image": self.image, "landmarks": self.points, "label": index})


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_collates_samples_of_a_users_own_data_set(workers: int, pixels: Tensor, points: Tensor) -> None:
    (batch,) = DataLoader(UserDataset(pixels, points), batch_size=4, num_workers=workers)
    assert batch["image"].shape == (4, 3, 48, 48)
    assert batch["landmarks"].shape == (4, 5, 2)
    assert batch["label"].tolist() == [0, 1, 2, 3]


def test_a_transform_does_not_modify_its_input(pixels: Tensor, points: Tensor) -> None:
    image, marks = pixels.clone(), points.clone()
    train_transform(48, erase=1.0)({"image": image, "landmarks": marks})
    assert torch.equal(image, pixels)
    assert torch.equal(marks, points)


def refused(**sample: Any) -> str:
    with pytest.raises((TypeError, ValueError)) as error:
        eval_transform(48)(sample)
    return str(error.value)


def test_unsupported_inputs_are_refused_with_a_clear_message(pixels: Tensor, points: Tensor) -> None:
    assert "sample must hold 'image' and 'landmarks', got 'image', 'points'" in refused(image=pixels, points=points)
    assert "call the transform with the image alone" in refused(image=pixels)
    assert refused(image=pixels, landmarks=None).endswith("for a face without landmarks give K rows of NaN")
    assert "landmarks must have shape (K, 2), (x, y) in pixels, got (1, 5, 2)" in refused(
        image=pixels, landmarks=points[None]
    )
    assert "image must be a PIL image, a tensor (3, H, W) or an array (H, W, 3)" in refused(
        image="a.png", landmarks=points
    )
    assert "image as a tensor must have shape (3, H, W), got (40, 60, 3)" in refused(
        image=pixels.permute(1, 2, 0), landmarks=points
    )
    assert "image as an array must have shape (H, W, 3), got (3, 40, 60)" in refused(
        image=pixels.numpy(), landmarks=points
    )
    assert "image as an array must be uint8, got float64" in refused(image=as_array(pixels) / 255, landmarks=points)
    for dtype in (torch.int64, torch.int32, torch.int16, torch.bool):
        wanted = f"image as a tensor must be uint8 (0 to 255) or floating-point (0 to 1), got {dtype}"
        assert wanted in refused(image=pixels.to(dtype), landmarks=points)
        assert wanted in refused(image=tv_tensors.Image(pixels.to(dtype)), landmarks=points)
    other = Landmarks(points, canvas_size=(8, 9))
    assert "landmarks belong to an image of 8 x 9, but image is 40 x 60 (height x width)" in refused(
        image=pixels, landmarks=other
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_float_images_outside_0_to_1_are_refused(pixels: Tensor, points: Tensor, dtype: torch.dtype) -> None:
    pixels[0, 0, :2] = torch.tensor([0, 255])
    as_floats = pixels.to(dtype)
    assert f"image as a {dtype} tensor must hold values from 0 to 1, got 0 to 255: give uint8, or divide" in refused(
        image=as_floats, landmarks=points
    )
    assert "got 0 to 255" in refused(image=tv_tensors.Image(as_floats), landmarks=points)
    assert "got -2 to 2: " in refused(image=as_floats / 255 * 4 - 2, landmarks=points), "normalised already"
    with pytest.raises(ValueError, match="must hold values from 0 to 1, got 0 to 255"):
        train_transform(48)(as_floats)  # type: ignore[arg-type]


def test_float_images_that_overshoot_from_bicubic_resizing_are_accepted(points: Tensor) -> None:
    edges = torch.zeros(3, 8, 8)
    edges[:, 2:6, 2:6] = 1.0
    resized = torch.nn.functional.interpolate(edges[None], (HEIGHT, WIDTH), mode="bicubic")[0]
    assert resized.max() > 1.01
    assert eval_transform(48)({"image": resized, "landmarks": points})["image"].isfinite().all()


def test_a_face_data_set_accepts_landmarks_as_an_array(pixels: Tensor, points: Tensor) -> None:
    images = MemoryImages(pixels[None].expand(2, -1, -1, -1))
    array = np.stack([points.numpy() + 1, points.numpy() + 2])
    dataset = FaceDataset(images, [0, 0], ["a"], landmarks=array)
    assert torch.equal(dataset[1]["landmarks"], points + 2)
    with pytest.raises(TypeError, match="landmarks must be a tensor or an array of shape"):
        FaceDataset(images, [0, 0], ["a"], landmarks="m.npz")  # type: ignore[arg-type]

"""What the transforms do with a sample's other entries: `visible` and masks follow the image, the rest is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pal_fast.data import train_transform
from pal_fast.data.transforms import FaceTransform
from pal_fast.landmarks import renumber_mirrored

pytest.importorskip("torchvision")

from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

HEIGHT, WIDTH = 60, 80


@pytest.fixture
def points(generator: torch.Generator) -> Tensor:
    return torch.rand(68, 2, generator=generator) * torch.tensor([WIDTH - 1.0, HEIGHT - 1.0])


def plain_view(flip: float, **options: Any) -> FaceTransform:
    """A transform that keeps the image's values, so that they can be compared."""
    return train_transform((48, 64), flip=flip, colour=0.0, mean=(0, 0, 0), std=(1, 1, 1), **options)


@pytest.mark.parametrize("kind", [torch.Tensor, np.ndarray])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_hidden_landmark_stays_hidden_under_a_flip(points: Tensor, flip: float, kind: type) -> None:
    visible = torch.ones(68, dtype=torch.bool)
    visible[36:42] = False  # one eye
    gone = points.clone()
    gone[36:42] = torch.nan
    given = visible.numpy() if kind is np.ndarray else visible
    sample = {"image": torch.zeros(3, HEIGHT, WIDTH), "landmarks": gone, "visible": given}
    moved = plain_view(flip)(sample)
    assert moved["visible"].dtype == torch.bool
    assert torch.equal(moved["visible"], moved["landmarks"].isfinite().all(1))
    assert moved["visible"][42:48].all().item() == (flip == 0)


def test_visible_and_weights_are_renumbered_as_their_points_are(points: Tensor, generator: torch.Generator) -> None:
    weights = torch.rand(2, 68, generator=generator)
    both = torch.stack([weights, weights], -1)
    assert torch.equal(renumber_mirrored(weights, dim=-1), renumber_mirrored(both)[..., 0])
    assert torch.equal(renumber_mirrored(weights[:, :7], dim=-1), weights[:, :7]), "no scheme of 7 points is known"


def test_a_mask_moves_with_its_image(points: Tensor, generator: torch.Generator, seed: int) -> None:
    """As torchvision's flip, rotation and crop move it, with the random numbers that move the image."""
    transform = plain_view(0.5, degrees=25)
    flips = set()
    for turn in range(24):
        image = torch.rand(3, HEIGHT, WIDTH, generator=generator)
        mask = tv_tensors.Mask(torch.rand(HEIGHT, WIDTH, generator=generator) > 0.5)
        torch.manual_seed(seed + turn)
        moved = transform({"image": image, "landmarks": points, "skin": mask, "label": 3})
        torch.manual_seed(seed + turn)
        params = transform.view.make_params([image])
        flips.add(params["flip"])
        wanted = [tv_tensors.Image(image), mask]
        if params["flip"]:
            wanted = [F.horizontal_flip(value) for value in wanted]
        wanted = [F.rotate(value, params["angle"], F.InterpolationMode.BILINEAR) for value in wanted]
        wanted = [F.resized_crop(value, **params["crop"], size=[48, 64]) for value in wanted]
        torch.testing.assert_close(moved["image"], wanted[0].as_subclass(Tensor))
        assert isinstance(moved["skin"], tv_tensors.Mask)
        assert torch.equal(moved["skin"], wanted[1])
        assert moved["label"] == 3
    assert flips == {True, False}


def test_entries_of_another_image_and_unusable_ones_are_refused(points: Tensor) -> None:
    sample = {"image": torch.zeros(3, HEIGHT, WIDTH), "landmarks": points}
    with pytest.raises(ValueError, match=r"mask \(Mask\) belongs to an image of 30 x 40, but image is 60 x 80"):
        plain_view(0)(sample | {"mask": tv_tensors.Mask(torch.zeros(30, 40, dtype=torch.bool))})
    boxes = tv_tensors.BoundingBoxes(torch.tensor([[1, 2, 3, 4]]), format="XYXY", canvas_size=(30, 40))
    with pytest.raises(ValueError, match=r"box .BoundingBoxes. belongs to an image of 30 x 40"):
        plain_view(0)(sample | {"box": boxes})
    with pytest.raises(TypeError, match=r"visible must be a bool tensor or array of shape \(68,\), got .*float32"):
        plain_view(0)(sample | {"visible": torch.ones(68)})
    with pytest.raises(ValueError, match=r"visible must have shape \(68,\), like the landmarks, got \(1, 68\)"):
        plain_view(0)(sample | {"visible": torch.ones(1, 68, dtype=torch.bool)})

"""Landmarks move with their image: the heatmap of moved landmarks is the moved heatmap, under every transform."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from support.compare import relative_error
from torch import Tensor

from pal_fast import reference
from pal_fast.data import eval_transform, train_transform
from pal_fast.faces import make_faces
from pal_fast.landmarks import MIRROR

pytest.importorskip("torchvision")

from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from pal_fast.data.points import Landmarks
from pal_fast.data.random_view import RandomView

HEIGHT, WIDTH, SIGMA = 60, 80, 4.0
BILINEAR = v2.InterpolationMode.BILINEAR


def heatmap(points: Tensor, size: tuple[int, int], sigma: tuple[float, float]) -> Tensor:
    """The sum of Gaussians of standard deviation (x, y) about points (K, 2), on (H, W)."""
    y, x = torch.arange(size[0])[:, None, None], torch.arange(size[1])[None, :, None]
    dx, dy = (x - points[:, 0]) / sigma[0], (y - points[:, 1]) / sigma[1]
    return torch.exp(-(dx**2 + dy**2) / 2).nansum(-1)


def sample(points: Tensor) -> dict[str, Any]:
    """Landmarks and an image whose channels are their heatmap, ones, and the heatmap again."""
    image = heatmap(points, (HEIGHT, WIDTH), (SIGMA, SIGMA)).repeat(3, 1, 1)
    image[1] = 1
    return {"image": tv_tensors.Image(image), "landmarks": Landmarks(points.clone(), canvas_size=(HEIGHT, WIDTH))}


@pytest.fixture
def points(generator: torch.Generator) -> Tensor:
    """Landmarks, (12, 2), some near the border."""
    return torch.rand(12, 2, generator=generator) * torch.tensor([WIDTH - 10.0, HEIGHT - 10.0]) + 5


def test_the_reference_heatmap_equals_the_packages(points: Tensor) -> None:
    wanted = reference.landmark_heatmap(points[None], (HEIGHT, WIDTH), image_size=(HEIGHT, WIDTH), sigma=SIGMA)
    torch.testing.assert_close(heatmap(points, (HEIGHT, WIDTH), (SIGMA, SIGMA)), wanted[0].float())


TRANSFORMS: dict[str, tuple[Any, float, float]] = {
    # name: (transform, by how much x and y are stretched)
    "horizontal flip": (v2.RandomHorizontalFlip(1), 1, 1),
    "vertical flip": (v2.RandomVerticalFlip(1), 1, 1),
    "resize up": (v2.Resize([120, 160], antialias=True), 2, 2),
    "resize by unlike factors": (v2.Resize([90, 100], antialias=True), 1.25, 1.5),
    "resize down": (v2.Resize([30, 40], antialias=True), 0.51, 0.51),  # antialiasing widens the Gaussians slightly
    "resize the shorter side": (v2.Resize(90, antialias=True), 1.5, 1.5),
    "rotation": (v2.RandomRotation((25, 25), interpolation=BILINEAR), 1, 1),
    "rotation, canvas grown": (v2.RandomRotation((25, 25), interpolation=BILINEAR, expand=True), 1, 1),
    "rotation about a point": (v2.RandomRotation((-40, -40), interpolation=BILINEAR, center=[10, 20]), 1, 1),
    "affine": (v2.RandomAffine((10, 10), (0.1, 0.1), (1.3, 1.3), interpolation=BILINEAR), 1.3, 1.3),
    "crop": (v2.RandomCrop((41, 53)), 1, 1),
    "centre crop": (v2.CenterCrop((41, 53)), 1, 1),
    "pad": (v2.Pad([3, 5, 7, 2]), 1, 1),
    "rotation about a point, canvas grown": (
        v2.RandomRotation((-40, -40), interpolation=BILINEAR, center=[30, 20], expand=True),
        1,
        1,
    ),
    "quarter turn, canvas grown": (v2.RandomRotation((90, 90), interpolation=BILINEAR, expand=True), 1, 1),
    "quarter turn": (v2.RandomRotation((90, 90), interpolation=BILINEAR), 1, 1),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_heatmap_of_moved_landmarks_is_the_moved_heatmap(name: str, points: Tensor) -> None:
    transform, stretch_x, stretch_y = TRANSFORMS[name]
    moved = transform(sample(points))
    image, landmarks = moved["image"], moved["landmarks"]
    size = (image.shape[-2], image.shape[-1])
    assert landmarks.canvas_size == size
    assert isinstance(landmarks, Landmarks)
    visible = image[1] > 0.999  # excludes pixels filled in from outside the image
    sigma = (SIGMA * stretch_x, SIGMA * stretch_y)
    rendered = heatmap(landmarks.as_subclass(Tensor), size, sigma) * visible
    image = image[0].as_subclass(Tensor) * visible
    assert relative_error(image / image.norm(), rendered / rendered.norm()) < 0.02
    off = heatmap(landmarks.as_subclass(Tensor) + 0.5, size, sigma) * visible
    assert relative_error(image / image.norm(), off / off.norm()) > 0.03, "half a pixel would not be noticed"


def centroid(image: Tensor) -> Tensor:
    y, x = torch.arange(image.shape[0]).float()[:, None], torch.arange(image.shape[1]).float()[None]
    return torch.stack([(image * x).sum(), (image * y).sum()]) / image.sum()


@pytest.mark.parametrize("functional", ["perspective", "resized_crop"])
def test_a_spot_and_its_landmark_stay_together(functional: str, generator: torch.Generator) -> None:
    point = torch.tensor([[40.0, 30.0]]) + torch.rand(1, 2, generator=generator) * 10 - 5
    given = sample(point)
    corners = [[0, 0], [WIDTH, 0], [WIDTH, HEIGHT], [0, HEIGHT]]
    arguments: tuple[Any, ...] = (corners, [[2, 3], [WIDTH - 5, 1], [WIDTH + 2, HEIGHT - 3], [1, HEIGHT]])
    if functional == "resized_crop":
        arguments = (5, 8, 50, 64, [100, 90])
    image, landmarks = (getattr(F, functional)(given[key], *arguments) for key in ("image", "landmarks"))
    torch.testing.assert_close(centroid(image[0] ** 4), landmarks[0].as_subclass(Tensor), rtol=0, atol=0.15)


def test_a_centre_crop_of_any_size_keeps_a_pixel_and_its_landmark_together() -> None:
    """Including crops larger than the image in one or both sides, which pad it."""
    sides = range(1, 10)
    for old, new in itertools.product(itertools.product(sides, sides), repeat=2):
        y, x = old[0] // 2, old[1] // 2
        image = torch.zeros(1, *old)
        image[0, y, x] = 1
        moved = F.center_crop(image, list(new))
        landmarks = F.center_crop(Landmarks(torch.tensor([[float(x), float(y)]]), canvas_size=old), list(new))
        assert landmarks.canvas_size == new == tuple(moved.shape[-2:])
        left, top = landmarks[0].tolist()
        seen = [[top, left]] if 0 <= top < new[0] and 0 <= left < new[1] else []
        assert moved[0].nonzero().tolist() == seen, (old, new)


def test_a_centre_crop_accepts_the_same_sizes_as_torchvision(points: Tensor) -> None:
    given = Landmarks(points.clone(), canvas_size=(HEIGHT, WIDTH))
    wanted = F.center_crop(given, [83, 83])
    for size in (83, [83], (83, 83)):
        moved = F.center_crop(given, size)
        assert moved.canvas_size == (83, 83)
        assert torch.equal(moved, wanted)


def test_train_transform_keeps_a_spot_and_its_landmark_together(generator: torch.Generator) -> None:
    transform = train_transform(72, colour=0.0, mean=(0, 0, 0), std=(1, 1, 1), degrees=25)
    differences = []
    for _ in range(60):
        point = torch.tensor([[40.0, 30.0]]) + torch.rand(1, 2, generator=generator) * 6 - 3
        moved = transform(sample(point))
        assert moved["image"].shape == (3, 72, 72)
        differences.append(centroid(moved["image"][0] ** 4) - moved["landmarks"][0].as_subclass(Tensor))
    difference = torch.stack(differences)
    assert difference.abs().max() < 0.15
    assert difference.mean(0).abs().max() < 0.03, "a constant shift"


@pytest.mark.parametrize("scale", [(0.5, 0.9), (1.0, 1.0)])
def test_a_random_view_equals_torchvisions_flip_rotation_and_crop(
    scale: tuple[float, float], points: Tensor, seed: int
) -> None:
    """Landmarks moved in one step end where torchvision's three kernels, applied in turn, move them."""
    view = RandomView((50, 70), flip=0.5, degrees=20, scale=scale)
    flips = set()
    for turn in range(24):
        given = sample(points)
        torch.manual_seed(seed + turn)
        params = view.make_params([given["image"]])
        image, landmarks = view.transform(given["image"], params), view.move(given["landmarks"], params)
        flips.add(params["flip"])
        expected = sample(points)
        if params["flip"]:
            expected = {key: F.horizontal_flip(value) for key, value in expected.items()}
        expected = {key: F.rotate(value, params["angle"], BILINEAR) for key, value in expected.items()}
        if params["crop"]:
            expected = {key: F.resized_crop(value, **params["crop"], size=[50, 70]) for key, value in expected.items()}
        else:
            expected = v2.Resize([50, 70])(expected)
        assert landmarks.canvas_size == expected["landmarks"].canvas_size == (50, 70)
        torch.testing.assert_close(image.as_subclass(Tensor), expected["image"].as_subclass(Tensor))
        both = landmarks.as_subclass(Tensor), expected["landmarks"].as_subclass(Tensor)
        torch.testing.assert_close(*both, rtol=0, atol=1e-3)
    assert flips == {True, False}
    assert view(sample(points))["landmarks"].canvas_size == (50, 70), "torchvision's way in"
    assert view(sample(points)["image"]).shape == (3, 50, 70)


def test_eval_transform_resizes_and_normalises(generator: torch.Generator) -> None:
    image = torch.randint(0, 256, (3, 50, 50), dtype=torch.uint8, generator=generator)
    moved = eval_transform((25, 100), mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.25))(
        {"image": tv_tensors.Image(image), "landmarks": Landmarks(torch.tensor([[0.0, 49.0]]), canvas_size=(50, 50))}
    )
    assert moved["image"].shape == (3, 25, 100)
    wanted = F.resize(image, [25, 100], antialias=True).float() / 255
    wanted = (wanted - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.5, 0.5, 0.25])[:, None, None]
    torch.testing.assert_close(moved["image"].as_subclass(Tensor), wanted, rtol=0, atol=1e-5)
    assert moved["landmarks"].tolist() == [[0.5, 24.25]]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.uint8, torch.float64])
@pytest.mark.parametrize("name", [*TRANSFORMS, "train", "eval"])
def test_landmarks_of_any_dtype_move_as_in_float32(name: str, dtype: torch.dtype, points: Tensor, seed: int) -> None:
    made = {"train": train_transform((50, 30)), "eval": eval_transform((50, 30))}
    transform = made[name] if name in made else TRANSFORMS[name][0]
    moved = {}
    for kind in (torch.float32, dtype):
        torch.manual_seed(seed)
        given = sample(points.round())
        given["image"].clamp_(max=1)
        given["landmarks"] = Landmarks(points.round().to(kind), canvas_size=(HEIGHT, WIDTH))
        moved[kind] = transform(given)["landmarks"].as_subclass(Tensor)
    assert moved[dtype].is_floating_point()
    torch.testing.assert_close(moved[dtype].float(), moved[torch.float32], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", [*TRANSFORMS, "train"])
def test_missing_landmarks_stay_missing_and_those_outside_the_image_stay_outside(name: str) -> None:
    transform = train_transform(50) if name == "train" else TRANSFORMS[name][0]
    given = sample(torch.tensor([[torch.nan, torch.nan], [-100.0, 500.0], [5.0, 5.0]]))
    moved = transform(given)["landmarks"].as_subclass(Tensor)
    # A flip must not renumber: three points follow no known scheme.
    assert moved.isnan().all(-1).tolist() == [True, False, False]
    height, width = transform(given)["landmarks"].canvas_size
    x, y = moved[1].tolist()
    assert not (0 <= x < width and 0 <= y < height)


def test_a_horizontal_flip_renumbers_left_and_right(seed: int) -> None:
    """In the flipped image, as in every image, points 36-41 are the right eye."""
    faces = make_faces(4, 64, seed=seed)
    for image, points in zip(faces.images, faces.landmarks, strict=True):
        moved = v2.RandomHorizontalFlip(1)(
            {"image": tv_tensors.Image(image), "landmarks": Landmarks(points.clone(), canvas_size=(64, 64))}
        )
        flipped = moved["landmarks"].as_subclass(Tensor)
        assert flipped[36:42, 0].mean() < flipped[42:48, 0].mean()
        assert flipped[0, 0] < flipped[16, 0]
        assert flipped[17, 0] < flipped[26, 0]
        assert flipped[48, 0] < flipped[54, 0]
        back = v2.RandomHorizontalFlip(1)(moved)["landmarks"].as_subclass(Tensor)
        torch.testing.assert_close(back, points, rtol=0, atol=1e-4)
        for k in range(68):
            wanted = torch.tensor([63.0, 0.0]) + points[MIRROR[68][k]] * torch.tensor([-1.0, 1.0])
            torch.testing.assert_close(flipped[k], wanted)


def test_the_heatmap_of_a_flipped_face_is_the_flipped_heatmap(seed: int) -> None:
    points = make_faces(1, 64, seed=seed).landmarks[0]
    moved = F.horizontal_flip(Landmarks(points.clone(), canvas_size=(64, 64))).as_subclass(Tensor)
    torch.testing.assert_close(heatmap(moved, (64, 64), (3, 3)), heatmap(points, (64, 64), (3, 3)).flip(1))


def test_an_elastic_transform_is_refused(points: Tensor) -> None:
    with pytest.raises(TypeError, match="ElasticTransform"):
        v2.ElasticTransform()(sample(points))


@pytest.mark.parametrize("kind", [v2.AutoAugment, v2.RandAugment, v2.TrivialAugmentWide, v2.AugMix])
def test_automatic_augmentations_refuse_landmarks(kind: type[v2.Transform], points: Tensor) -> None:
    with pytest.raises(TypeError, match="Inputs of type Landmarks are not supported"):
        kind()(sample(points))


@pytest.mark.parametrize("kind", [v2.FiveCrop, v2.TenCrop])
def test_several_crops_leave_landmarks_as_they_are_with_a_warning(kind: type[v2.Transform], points: Tensor) -> None:
    with pytest.warns(UserWarning, match=r"passing through inputs of type .*Landmarks"):
        moved = kind(40)(sample(points))
    assert torch.equal(moved["landmarks"].as_subclass(Tensor), points)


def test_no_transform_modifies_its_input(points: Tensor) -> None:
    given = sample(points)
    for transform, *_ in TRANSFORMS.values():
        transform(given)
        assert torch.equal(given["landmarks"].as_subclass(Tensor), points)

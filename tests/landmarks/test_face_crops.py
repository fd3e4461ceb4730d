"""FAN's geometry: the crop that the network sees, and the subpixel mapping of its heatmaps to the image."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pal_fast.landmarks.fan import FaceAligner
from pal_fast.landmarks.fan_geometry import INPUT_SIZE, peaks, to_image, window_of
from pal_fast.landmarks.geometry import Window, crop_window
from pal_fast.landmarks.schemes import MIRROR


def gaussians(shares: Tensor, size: int = 64, sigma: float = 1.2) -> Tensor:
    """Heatmaps (K, size, size) of points (K, 2) given as fractions of the side, measured from the corner."""
    centres = torch.arange(size) + 0.5
    x, y = shares[:, 0] * size, shares[:, 1] * size
    dx, dy = centres[None] - x[:, None], centres[None] - y[:, None]
    return torch.exp(-(dx[:, None, :] ** 2 + dy[:, :, None] ** 2) / (2 * sigma**2))


def shares_of(points: Tensor, window: Window) -> Tensor:
    """Points in pixels of the image (integer = pixel centre) as fractions of the window."""
    return (points + 0.5 - torch.tensor([window.x, window.y])) / window.side + 0.5


def test_the_window_equals_face_alignments() -> None:
    """Its side is 200 / 195 of width plus height, its centre raised by 0.12 of the height, as in face-alignment."""
    x, y, side = window_of((10, 20, 110, 145))
    assert (x, y) == (60, 82.5 - 0.12 * 125)
    assert side == pytest.approx(200 * (100 + 125) / 195)
    assert window_of((0, 0, 100, 100), 165).side == pytest.approx(200 * 200 / 165)


def test_subpixel_peaks_of_gaussians_are_exact(generator: torch.Generator) -> None:
    shares = torch.rand(5, 68, 2, generator=generator) * 0.9 + 0.05
    heatmaps = torch.stack([gaussians(of) for of in shares])
    found, values = peaks(heatmaps)
    torch.testing.assert_close(found, shares, rtol=0, atol=2e-4)
    assert values.min() > 0.8


def test_peaks_at_the_border_and_of_flat_maps_are_finite() -> None:
    heatmaps = torch.zeros(1, 4, 64, 64)
    heatmaps[0, 0, 0, 63] = 1
    heatmaps[0, 1] = -1
    heatmaps[0, 2, 5, 5] = 1
    found, values = peaks(heatmaps)
    torch.testing.assert_close(found[0, 0], torch.tensor([63.5 / 64, 0.5 / 64]))
    torch.testing.assert_close(found[0, 2], torch.tensor([5.5 / 64, 5.5 / 64]))
    assert found.isfinite().all()
    assert values[0].tolist() == [1, -1, 1, 0]


@pytest.mark.parametrize("size", [(60, 60), (300, 400), (1500, 1100)])
def test_a_spot_lands_in_the_crop_where_the_window_maps_it(size: tuple[int, int], generator: torch.Generator) -> None:
    """The centroid of a blurred spot, for crops that enlarge, reduce and extend beyond the image."""
    height, width = size
    point = torch.tensor([width * 0.4, height * 0.55]) + torch.rand(2, generator=generator) * 3
    sigma = max(3.0, height / 60)
    y, x = torch.arange(height)[:, None], torch.arange(width)[None]
    spot = torch.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / (2 * sigma**2))
    image = (spot * 255).round().to(torch.uint8).expand(3, -1, -1)
    for box in ((0, 0, width, height), (width * 0.25, height * 0.3, width * 0.6, height * 0.75)):
        window = window_of(box)
        crop = crop_window(image, window, INPUT_SIZE)
        assert crop.shape == (3, 256, 256)
        weight = crop[0] ** 2
        steps = (torch.arange(256) + 0.5) / 256
        found = torch.stack([(weight * steps).sum(), (weight * steps[:, None]).sum()]) / weight.sum()
        error = (found - shares_of(point, window)) * window.side
        assert error.abs().max() < 0.15, "in pixels of the image"


def test_the_crop_is_black_beyond_the_image() -> None:
    image = torch.full((3, 100, 100), 255, dtype=torch.uint8)
    crop = crop_window(image, window_of((0, 0, 100, 100)), INPUT_SIZE)
    assert crop[:, :50].max() == 0
    assert crop[:, 128, 128].min() == pytest.approx(1)
    assert crop_window(image, window_of((500, 500, 600, 600)), INPUT_SIZE).max() == 0


class StubNetwork:
    """Returns known heatmaps, mirrored in every second call, which is the one on mirrored crops."""

    def __init__(self, heatmaps: list[Tensor]) -> None:
        self.heatmaps = heatmaps
        self.calls = 0

    def __call__(self, crops: Tensor) -> list[Tensor]:
        assert crops.shape[1:] == (3, 256, 256)
        assert crops.dtype == torch.float32
        answer = torch.stack(self.heatmaps[: len(crops)])
        self.calls += 1
        if self.calls % 2 == 0:
            answer = answer[:, list(MIRROR[68])].flip(-1)
        return [torch.zeros_like(answer), answer]


class StubDetector:
    reference_scale = 195

    def __init__(self, boxes: Any) -> None:
        self.boxes = boxes

    def detect_from_image(self, image: np.ndarray) -> Any:
        assert image.dtype == np.uint8
        assert image.shape[2] == 3
        return self.boxes.pop(0)

    def detect_from_batch(self, images: Tensor) -> Any:
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        return [self.boxes.pop(0) for _ in images]


def stub(heatmaps: list[Tensor], boxes: list[Any] | None = None) -> SimpleNamespace:
    return SimpleNamespace(face_alignment_net=StubNetwork(heatmaps), face_detector=StubDetector(boxes or []))


def test_known_heatmaps_become_landmarks_in_pixels_of_the_image(generator: torch.Generator) -> None:
    """For images of several sizes and boxes of several shapes, with faces anywhere in their windows."""
    sizes = [(100, 100), (240, 320), (90, 70)]
    boxes = [(0.0, 0.0, 100.0, 100.0), (37.0, 52.0, 201.0, 230.0), (-10.0, 5.0, 60.0, 95.0)]
    windows = [window_of(box) for box in boxes]
    wanted = torch.stack(
        [(torch.rand(68, 2, generator=generator) * 0.8 - 0.4) * at.side + torch.tensor([at.x, at.y]) for at in windows]
    )
    heatmaps = [gaussians(shares_of(points, at)) for points, at in zip(wanted, windows, strict=True)]
    given = iter(boxes)
    aligner = FaceAligner(lambda name, file, image: next(given), package=stub(heatmaps))
    images = [torch.zeros(3, *size, dtype=torch.uint8) for size in sizes]
    points, scores = aligner(["a", "b", "c"], [Path()] * 3, images)
    torch.testing.assert_close(points, wanted, rtol=0, atol=0.02)
    assert scores.shape == (3, 68)
    assert scores.min() > 0.7


def test_the_largest_detected_face_is_used_and_no_face_gives_nan(generator: torch.Generator) -> None:
    shares = torch.rand(68, 2, generator=generator) * 0.8 + 0.1
    small, large = np.array([5.0, 5, 30, 40, 0.99]), np.array([40.0, 30, 110, 120, 0.7])
    package = stub([gaussians(shares)] * 2, [[small, large], [], [large]])
    points, scores = FaceAligner(package=package)(
        ["a", "b", "c"], [Path()] * 3, [torch.zeros(3, 128, 128, dtype=torch.uint8)] * 3
    )
    window = window_of(large)
    wanted = torch.tensor([window.x, window.y]) + (shares - 0.5) * window.side - 0.5
    torch.testing.assert_close(points[0], wanted, rtol=0, atol=0.02)
    torch.testing.assert_close(points[2], points[0])
    assert points[1].isnan().all()
    assert scores[1].isnan().all()


def test_without_flip_the_network_runs_once(generator: torch.Generator) -> None:
    heatmaps = [gaussians(torch.rand(68, 2, generator=generator))]
    package = stub(heatmaps)
    FaceAligner(lambda *_: (0, 0, 9, 9), flip=False, package=package)(
        ["a"], [Path()], [torch.zeros(3, 9, 9, dtype=torch.uint8)]
    )
    assert package.face_alignment_net.calls == 1


def test_each_image_of_a_batch_uses_its_own_window() -> None:
    windows = [Window(10, 20, 40), Window(5, 5, 10)]
    centre = torch.full((2, 1, 2), 0.5)
    assert to_image(centre, windows).tolist() == [[[9.5, 19.5]], [[4.5, 4.5]]]

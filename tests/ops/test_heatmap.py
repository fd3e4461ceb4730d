"""The compiled heatmap and its gradients against the float64 reference, with all options combined."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.compare import assert_close
from support.heatmaps import IMAGE, solve
from support.loss_problems import CHOICES, name_of
from support.pairwise import pairwise

import pal_fast

CASES = pairwise(
    {
        "size": [(1, 1), (1, 4), (7, 7), (13, 17), (40, 33), (20, 70), (200, 66), (96, 70), (250, 128)],
        "landmarks": [1, 5, 68, 150],  # the last is more than are held at once
        "dtype": [torch.float32, torch.float64],
        "combine": CHOICES["combine"],
        "normalize": CHOICES["normalize"],
        "trouble": [False, True],
        "visible": [False, True],
        "weights": [None, "shared", "own"],
        "needs": ["landmarks", "weights", "both"],
        "sigma": [1.5, 3.0, 12.0],
    },
    seed=2,
)

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_heatmap_and_gradients_agree_with_the_reference_and_repeat_bit_for_bit(
    backend: str, case: dict[str, Any], generator: torch.Generator
) -> None:
    count, dtype = case["landmarks"], case["dtype"]
    # In float32 a map is zero, normalised or not, if every cell is 13 sigma or more from every landmark.
    case = case | {"sigma": max(case["sigma"], IMAGE[0] / case["size"][0] / 8)}
    points = torch.rand(3, count, 2, generator=generator, dtype=torch.float64) * 60 - 6
    if case["trouble"]:
        points[0] = torch.nan
        points[1, 0, 1], points[2, -1] = torch.inf, torch.tensor([52.0, -5.0])
    visible = torch.rand(3, count, generator=generator).to(backend) > 0.3 if case["visible"] else None
    if visible is not None:
        visible[2] = True
    rows = {"own": (3, count), "shared": (count,), None: ()}[case["weights"]]
    weights = (torch.rand(rows, generator=generator, dtype=torch.float64) + 0.1).to(backend, dtype) if rows else None
    upstream = torch.randn(3, *case["size"], generator=generator, dtype=torch.float64).to(backend, dtype)
    points = points.to(backend, dtype)

    got = solve(case, points, weights, visible, upstream, backend)
    judge = solve(
        case, points.double(), None if weights is None else weights.double(), visible, upstream.double(), "reference"
    )
    assert got[0].dtype == dtype
    for index, (value, wanted) in enumerate(zip(got, judge, strict=True)):
        what = "gradient" if index else "heatmap"
        # A single normalised Gaussian has zero gradient in its weight: only rounding is left.
        if wanted.abs().max() < 1e-9:
            assert value.abs().max() < 1e-5, f"{what} {value}"
        else:
            assert_close(value, wanted, dtype, what)
    again = solve(case, points, weights, visible, upstream, backend)
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True)), "other bits the second time"


@pytest.mark.parametrize("normalize", ["none", "peak", "sum"])
@pytest.mark.parametrize("combine", ["sum", "max"])
def test_empty_batches_and_no_landmarks_give_empty_and_zero_heatmaps(backend, combine, normalize):
    for batch, count in ((0, 5), (2, 0)):
        points = torch.rand(batch, count, 2, device=backend, requires_grad=True)
        heatmap = pal_fast.landmark_heatmap(points, (7, 5), combine=combine, normalize=normalize, backend=backend)
        assert heatmap.shape == (batch, 7, 5)
        assert not heatmap.any()
        (gradient,) = torch.autograd.grad(heatmap.sum(), points)
        assert gradient.shape == points.shape


def test_half_precision_landmarks_equal_the_same_values_in_float32(backend, generator):
    for dtype in (torch.float16, torch.bfloat16):
        points = (torch.rand(2, 5, 2, generator=generator) * 50).to(backend, dtype)
        got = pal_fast.landmark_heatmap(points, (7, 9), image_size=50, backend=backend)
        assert torch.equal(got, pal_fast.landmark_heatmap(points.float(), (7, 9), image_size=50, backend=backend))


@pytest.mark.parametrize("combine", ["sum", "max"])
def test_a_dropped_landmark_has_exactly_zero_gradient(backend, combine):
    points = torch.tensor([[[10.0, 12.0], [torch.nan, 3.0], [20.0, torch.inf], [30.0, 5.0]]], device=backend)
    points.requires_grad_()
    weights = torch.ones(1, 4, device=backend, requires_grad=True)
    visible = torch.tensor([[True, True, True, False]], device=backend)
    heatmap = pal_fast.landmark_heatmap(
        points, (8, 8), image_size=40, weights=weights, visible=visible, combine=combine, backend=backend
    )
    heatmap.square().sum().backward()
    assert points.grad is not None
    assert weights.grad is not None
    assert points.grad[0, 0].all()
    assert not points.grad[0, 1:].any()
    assert not weights.grad[0, 1:].any()


def test_an_integer_landmark_is_the_centre_of_its_pixel(backend):
    points = torch.tensor([[[3.0, 1.0]]], device=backend)
    heatmap = pal_fast.landmark_heatmap(points, (5, 7), sigma=0.5, backend=backend)[0]
    assert heatmap[1, 3] == 1
    assert heatmap.argmax() == 1 * 7 + 3
    assert torch.equal(heatmap[1, 2], heatmap[1, 4])


def test_a_tie_goes_to_the_first_landmark(backend):
    points = torch.tensor([[[2.0, 2.0], [2.0, 2.0]]], device=backend, requires_grad=True)
    weights = torch.ones(1, 2, device=backend, requires_grad=True)
    heatmap = pal_fast.landmark_heatmap(points, (5, 5), sigma=1.0, weights=weights, combine="max", backend=backend)
    heatmap.sum().backward()
    assert weights.grad is not None
    assert weights.grad[0, 0] > 0
    assert weights.grad[0, 1] == 0


def test_negative_weights_agree_with_the_reference(backend, generator):
    points = (torch.rand(2, 6, 2, generator=generator) * 40).to(backend)
    weights = torch.tensor([1.0, -1.0, 0.5, -2.0, 0.0, 1.0], device=backend).expand(2, 6)
    for combine in ("sum", "max"):
        for normalize in ("none", "peak"):
            options = {"image_size": 40, "combine": combine, "normalize": normalize}
            got = pal_fast.landmark_heatmap(points, (9, 11), weights=weights, **options, backend=backend)
            wanted = pal_fast.landmark_heatmap(
                points.double(), (9, 11), weights=weights.double(), **options, backend="reference"
            )
            assert_close(got, wanted, torch.float32)


def test_landmarks_at_any_distance_give_no_nan(backend):
    for dtype, far in ((torch.float32, 3e38), (torch.float64, 1e300)):
        points = torch.tensor([[[far, -far], [5.0, 5.0], [-1e9, 1e9]]], dtype=dtype, device=backend)
        points.requires_grad_()
        for combine in ("sum", "max"):
            for normalize in ("none", "peak", "sum"):
                heatmap = pal_fast.landmark_heatmap(
                    points, (6, 6), image_size=12, combine=combine, normalize=normalize, backend=backend
                )
                (gradient,) = torch.autograd.grad(heatmap.square().sum(), points)
                assert heatmap.isfinite().all()
                assert gradient.isfinite().all()
                assert not gradient[0, ::2].any()

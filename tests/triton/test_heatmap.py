"""The Triton heatmap and its gradients against the float64 reference, with all options combined."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.compare import assert_close
from support.heatmaps import solve
from support.loss_problems import CHOICES, name_of
from support.pairwise import pairwise

import pal_fast

pytest.importorskip("triton", reason="the package triton is not installed")

CASES = pairwise(
    {
        "size": [(1, 4), (7, 7), (13, 17), (40, 33), (20, 70)],
        "landmarks": [3, 5, 18],
        "dtype": [torch.float32, torch.float64],
        "combine": CHOICES["combine"],
        "normalize": CHOICES["normalize"],
        "trouble": [False, True],
        "visible": [False, True],
        "weights": [None, "shared", "own"],
        "needs": ["landmarks", "weights", "both"],
        "sigma": [3.0, 12.0],
    }
)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_heatmap_and_gradients_agree_with_the_reference_and_repeat_bit_for_bit(
    device: str, case: dict[str, Any], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    count, dtype = case["landmarks"], case["dtype"]
    points = torch.rand(3, count, 2, generator=generator, dtype=torch.float64) * 60 - 6
    if case["trouble"]:
        points[0] = torch.nan
        points[1, 0, 1], points[2, -1] = torch.inf, torch.tensor([60.0, -20.0])
    visible = torch.rand(3, count, generator=generator).to(device) > 0.3 if case["visible"] else None
    if visible is not None:
        visible[2] = True  # a single normalised Gaussian has zero gradient in its weight
    rows = {"own": (3, count), "shared": (count,), None: ()}[case["weights"]]
    weights = (torch.rand(rows, generator=generator, dtype=torch.float64) + 0.1).to(device, dtype) if rows else None
    upstream = torch.randn(3, *case["size"], generator=generator, dtype=torch.float64).to(device, dtype)
    points = points.to(device, dtype)

    got = solve(case, points, weights, visible, upstream, "triton")
    judge = solve(
        case, points.double(), None if weights is None else weights.double(), visible, upstream.double(), "reference"
    )
    for index, (value, wanted) in enumerate(zip(got, judge, strict=True)):
        assert value.dtype == dtype
        assert_close(value, wanted, dtype, "gradient" if index else "heatmap")
    again = solve(case, points, weights, visible, upstream, "triton")
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True)), "other bits the second time"


@pytest.mark.parametrize("combine", ["sum", "max"])
def test_empty_batches_and_no_landmarks_give_empty_and_zero_heatmaps(device: str, combine: str) -> None:
    for batch, count in ((0, 5), (2, 0)):
        points = torch.rand(batch, count, 2, device=device, requires_grad=True)
        heatmap = pal_fast.landmark_heatmap(points, (7, 5), combine=combine, normalize="peak", backend="triton")
        assert heatmap.shape == (batch, 7, 5)
        assert not heatmap.any()
        (gradient,) = torch.autograd.grad(heatmap.sum(), points)
        assert gradient.shape == points.shape


def test_a_heatmap_of_one_cell_agrees_with_the_reference(device: str, seed: int) -> None:
    points = torch.rand(2, 1, 2, generator=torch.Generator().manual_seed(seed)).to(device).requires_grad_()
    options = {"image_size": (9, 9), "sigma": 4.0}
    got = pal_fast.landmark_heatmap(points, (1, 1), **options, backend="triton")
    wanted = pal_fast.landmark_heatmap(points.double(), (1, 1), **options, backend="reference")
    assert_close(got, wanted, torch.float32, "heatmap")
    gradients = [torch.autograd.grad(heatmap.sum(), points)[0] for heatmap in (got, wanted)]
    assert_close(*gradients, torch.float32, "gradient")

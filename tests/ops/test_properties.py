"""Properties that hold for any input: bounds, invariances, finiteness. hypothesis picks the shapes and the options."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support.compare import TOLERANCE, relative_error
from support.loss_problems import make
from torch import Tensor

import pal_fast

SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

shapes = st.tuples(*(st.integers(1, most) for most in (4, 40, 20, 20)))
seeds = st.integers(0, 2**31 - 1)
layouts = st.sampled_from(["contiguous", "channels_last"])
cases = st.fixed_dictionaries(
    {
        "shape": shapes,
        "layout": layouts,
        "attribution": st.sampled_from(["grad_input", "grad", "activation"]),
        "absolute": st.booleans(),
        "channels": st.sampled_from(["mean", "half", "all", "each"]),
        "channel_count": st.sampled_from([None, 1, 0.5]),
        "landmarks": st.sampled_from([1, 5, 30, None, "small"]),
        "trouble": st.sampled_from(["none", "some", "sample"]),
        "weights": st.sampled_from([None, "own"]),
        "combine": st.sampled_from(["sum", "max"]),
        "normalize": st.sampled_from(["none", "peak", "sum"]),
        "reduction": st.just("none"),
    }
)
floats = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**60), max_value=2.0**60)


@SETTINGS
@given(case=cases, seed=seeds)
def test_pearson_lies_between_minus_one_and_one(backend: str, case: dict[str, Any], seed: int) -> None:
    loss, gradients = make(case, seed, backend).solve(backend)
    assert (loss.abs() <= 1 + 1e-6).all()
    assert all(gradient.isfinite().all() for gradient in gradients)


@SETTINGS
@given(case=cases, seed=seeds)
def test_a_batch_scores_each_sample_independently(backend: str, case: dict[str, Any], seed: int) -> None:
    problem, alone = make(case, seed, backend), make(case, seed, backend)
    whole, _ = problem.solve(backend)
    for b in range(case["shape"][0]):
        one = slice(b, b + 1)
        alone.activation = None if problem.activation is None else problem.activation[one]
        alone.gradient = None if problem.gradient is None else problem.gradient[one]
        alone.tensors = {k: t if k == "weights" and t.ndim == 1 else t[one] for k, t in problem.tensors.items()}
        alone.upstream = problem.upstream[one]
        assert abs(alone.solve(backend)[0].item() - whole[b].item()) <= 2e-6


@SETTINGS
@given(case=cases, seed=seeds, scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_pearson_is_invariant_to_affine_maps_of_the_prior(
    backend: str, case: dict[str, Any], seed: int, scale: float, shift: float
) -> None:
    case = case | {"landmarks": None, "trouble": "none"}
    problem = make(case | {"dtype": torch.float64}, seed, backend)
    first, _ = problem.solve(backend)
    problem.tensors["heatmap"] = problem.tensors["heatmap"] * scale + shift
    heatmap = problem.tensors["heatmap"].flatten(1)
    spread = heatmap.std(1, correction=0)
    assume(bool(((spread == 0) | (spread > 1e-4 * heatmap.square().mean(1).sqrt())).all()))  # flat both times or never
    second, _ = problem.solve(backend)
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)


@SETTINGS
@given(shape=shapes, seed=seeds, layout=layouts, channels=st.sampled_from(["mean", "all", "each"]))
def test_the_gradient_is_orthogonal_to_shifting_and_scaling_a_group(
    backend: str, shape: tuple[int, ...], seed: int, layout: str, channels: str
) -> None:
    """Standardisation cancels any constant added to a group and any factor applied to it."""
    case = {"shape": shape, "layout": layout, "attribution": "activation", "channels": channels}
    problem = make(case | {"dtype": torch.float64, "reduction": "sum", "landmarks": None}, seed, backend)
    _, (df,) = problem.solve(backend)
    largest = problem.activation.abs().max().item()
    groups = {"mean": problem.activation.mean(1), "all": problem.activation, "each": problem.activation.flatten(0, 1)}
    spread = groups[channels].detach().flatten(1).std(1, correction=0)
    # The terms that cancel are of size upstream / spread, and nothing of them may be left: in a group of two cells
    # z is -1 and 1 whatever the values.
    size = df.abs().sum().item() + (problem.upstream.abs() / spread[spread > 0]).sum().item()
    assert abs(df.sum().item()) <= 1e-9 * size
    assert abs((df * problem.activation).sum().item()) <= 1e-9 * size * largest


@SETTINGS
@given(shape=shapes, seed=seeds, exponent=st.integers(-15, 15), channels=st.sampled_from(["mean", "all", "each"]))
def test_the_loss_is_invariant_to_the_scale_of_the_gradient(
    backend: str, shape: tuple[int, ...], seed: int, exponent: int, channels: str
) -> None:
    problem = make({"shape": shape, "channels": channels, "reduction": "none"}, seed, backend)
    first, _ = problem.solve(backend)
    problem.gradient *= 10.0**exponent
    second, _ = problem.solve(backend)
    assert relative_error(second, first, typical=0.1) <= TOLERANCE[torch.float32]


@SETTINGS
@given(
    values=st.lists(floats, min_size=8, max_size=24),
    channels=st.sampled_from(["mean", "all", "each"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_a_finite_layer_never_gives_nan(backend: str, values: list[float], channels: str, dtype: torch.dtype) -> None:
    count = len(values) // 4
    f, g = torch.tensor(values[: 4 * count], dtype=dtype, device=backend).reshape(1, count, 2, 2).repeat(2, 1, 1, 1, 1)
    g = g.flip(1)
    f.requires_grad_(), g.requires_grad_()
    heatmap = torch.tensor([[[0.0, 1.0], [0.5, 2.0]]], device=backend)
    loss = pal_fast.pal_loss(f, g, heatmap, channels=channels, backend=backend)
    gradients = torch.autograd.grad(loss, (f, g))
    assert loss.isfinite()
    assert not any(gradient.isnan().any() for gradient in gradients)


@SETTINGS
@given(
    points=st.lists(st.tuples(*[st.floats(width=32)] * 2), max_size=6),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    sigma=st.floats(0.01, 1e4),
    combine=st.sampled_from(["sum", "max"]),
    normalize=st.sampled_from(["none", "peak", "sum"]),
)
def test_a_heatmap_lies_between_zero_and_the_number_of_landmarks(
    backend: str, points: list[tuple[float, float]], size: tuple[int, int], sigma: float, combine: str, normalize: str
) -> None:
    landmarks = torch.tensor(points, device=backend).reshape(1, len(points), 2).requires_grad_()
    options = {"sigma": sigma, "combine": combine, "normalize": normalize}
    heatmap = pal_fast.landmark_heatmap(landmarks, size, **options, backend=backend)
    (gradient,) = torch.autograd.grad(heatmap.sum(), landmarks)
    assert not gradient.isnan().any()
    valid = sum(math.isfinite(x) and math.isfinite(y) for x, y in points)
    bound = valid if (combine, normalize) == ("sum", "none") else min(valid, 1)
    assert (heatmap >= 0).all()
    assert (heatmap <= bound + 1e-5).all()
    if normalize == "peak" and heatmap.any():
        assert heatmap.max().item() == pytest.approx(1.0)
    if normalize == "sum" and heatmap.any():
        assert heatmap.double().sum().item() == pytest.approx(1.0, rel=1e-5)


@SETTINGS
@given(seed=seeds, count=st.integers(1, 80), size=st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_the_heatmap_does_not_depend_on_the_order_of_landmarks(
    backend: str, seed: int, count: int, size: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = (torch.rand(1, count, 2, generator=generator, dtype=torch.float64) * 50).to(backend)

    def draw(order: Tensor) -> Tensor:
        return pal_fast.landmark_heatmap(points[:, order], size, image_size=50, backend=backend)

    order = torch.randperm(count, generator=generator)
    torch.testing.assert_close(draw(torch.arange(count)), draw(order), rtol=1e-12, atol=1e-15)

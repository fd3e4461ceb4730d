"""The reference's first and second derivatives against finite differences in float64."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from pal_fast import reference
from pal_fast.constants import ATTRIBUTION, CHANNELS, SCORE

SHAPE = (2, 3, 3, 4)


def away_from_zero(generator: torch.Generator) -> torch.Tensor:
    """Values at which abs is smooth."""
    values = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    return (values + values.sign() * 0.1).requires_grad_()


@pytest.mark.parametrize("attribution", ATTRIBUTION)
@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("score", SCORE)
def test_the_loss_is_differentiable_twice(generator, attribution, absolute, channels, score):
    f, g = away_from_zero(generator), away_from_zero(generator)
    h = torch.rand(2, 3, 4, generator=generator, dtype=torch.float64)

    def loss(f: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        n = 1 if channels == "half" else 3
        options = {"attribution_kind": attribution, "absolute": absolute, "channels": channels, "score": score}
        return reference.pal_loss(f, g, h, **options, channel_count=n, scale="unit")

    if attribution == "grad":
        inputs, of_inputs = (g,), lambda g: loss(f.detach(), g)
    elif attribution == "activation":
        inputs, of_inputs = (f,), lambda f: loss(f, g.detach())
    else:
        inputs, of_inputs = (f, g), loss
    assert gradcheck(of_inputs, inputs)
    assert gradgradcheck(of_inputs, inputs)


@pytest.mark.parametrize("combine", ["sum", "max"])
@pytest.mark.parametrize("normalize", ["none", "peak", "sum"])
def test_the_heatmap_is_differentiable_in_landmarks_and_weights(generator, combine, normalize):
    points = (torch.rand(2, 3, 2, generator=generator, dtype=torch.float64) * 20).requires_grad_()
    weights = (torch.rand(2, 3, generator=generator, dtype=torch.float64) + 0.5).requires_grad_()

    def heatmap(points: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return reference.landmark_heatmap(
            points, (4, 5), image_size=(20, 20), sigma=5.0, weights=weights, combine=combine, normalize=normalize
        )

    assert gradcheck(heatmap, (points, weights))
    if normalize != "peak":  # the maximum's second derivative does not exist where two cells tie
        assert gradgradcheck(heatmap, (points, weights))


def test_flat_maps_score_zero_with_zero_gradient(generator):
    f = torch.full((2, 3, 4, 4), 3.0, requires_grad=True)
    g = torch.full((2, 3, 4, 4), -1e-9, requires_grad=True)
    h = torch.rand(2, 4, 4, generator=generator)
    loss = reference.pal_loss(f, g, h, channel_count=3)
    assert loss.item() == 0
    for gradient in torch.autograd.grad(loss, (f, g)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("k", [1e-15, 1e-9, 1e-3, 1e3, 1e9, 1e15])
def test_the_loss_is_invariant_to_the_scale_of_the_gradient(generator, k):
    f, g = torch.randn(2, 3, 5, 5, generator=generator), torch.randn(2, 3, 5, 5, generator=generator)
    h = torch.rand(2, 5, 5, generator=generator)
    for channels in ("mean", "all", "each"):
        plain = reference.pal_loss(f, g, h, channels=channels, channel_count=3)
        torch.testing.assert_close(
            reference.pal_loss(f, g * k, h, channels=channels, channel_count=3), plain, rtol=2e-6, atol=1e-6
        )


def test_without_a_valid_sample_the_loss_is_zero_and_stays_in_the_graph(generator):
    f = torch.randn(SHAPE, generator=generator, requires_grad=True)
    g = torch.randn(SHAPE, generator=generator)
    loss = reference.pal_loss(f, g, torch.zeros(2, 3, 4), annotated=torch.tensor([False, False]), channel_count=3)
    loss.backward()
    assert loss.item() == 0
    assert f.grad is not None
    assert torch.equal(f.grad, torch.zeros_like(f))


@pytest.mark.parametrize("channels", ["half", "all", "each"])
def test_unscored_samples_and_free_channels_get_exactly_zero_gradient_even_with_nan(generator, channels):
    f, g = (torch.randn(3, 6, 5, 5, generator=generator) for _ in range(2))
    f[0], f[:, 3:] = torch.nan, torch.nan
    f.requires_grad_(), g.requires_grad_()
    annotated = torch.tensor([False, True, True])
    h = torch.rand(3, 5, 5, generator=generator)
    loss = reference.pal_loss(f, g, h, annotated=annotated, channels=channels, channel_count=3)
    for gradient in torch.autograd.grad(loss, (f, g)):
        assert gradient.isfinite().all()
        assert gradient[1:, :3].any()
        assert not gradient[0].any()
        assert not gradient[:, 3:].any()

"""The reference against the formulas of the specification, written out cell by cell in numpy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from pal_fast import reference

B, C, H, W, K = 3, 4, 5, 6, 3


def random_inputs(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(B, C, H, W)), rng.normal(size=(B, C, H, W)), rng.uniform(size=(B, H, W))


def score_by_hand(a: np.ndarray, h: np.ndarray, channels: str, n: int, score: str, scale: str) -> float:
    """The score of one sample: a (C, H, W), h (H, W)."""

    def standard(values: np.ndarray) -> np.ndarray:
        return (values - values.mean()) / values.std()

    a = a[:n]
    heat = standard(h) if score == "pearson" else h
    if channels == "each":
        groups = [(standard(a[c]), heat) for c in range(n)]
    elif channels == "all":
        groups = [(standard(a), np.broadcast_to(heat, a.shape))]
    else:
        groups = [(standard(a.mean(0)), heat)]
    scores = []
    for z, heat_ in groups:
        total = -float((z * heat_).sum())
        if score == "pearson" or scale == "mean":
            total /= z.size
        elif scale == "unit":
            total /= math.sqrt(z.size)
        scores.append(total)
    return sum(scores) / len(scores)


@pytest.mark.parametrize(
    ("channels", "score", "scale"),
    list(itertools.product(["mean", "half", "all", "each"], ["pearson", "cross_correlation"], ["sum", "mean", "unit"])),
)
@pytest.mark.parametrize(
    ("kind", "absolute"), [("grad_input", True), ("grad_input", False), ("grad", True), ("activation", True)]
)
def test_the_loss_matches_the_formula(seed, channels, score, scale, kind, absolute):
    n = C // 2 if channels == "half" else C
    # A score is a sum of terms of either sign: inputs whose terms cancel to their own rounding are drawn again.
    for attempt in itertools.count():
        f, g, h = random_inputs(seed + attempt)
        a = {"grad_input": (np.abs(g) if absolute else g) * f, "grad": np.abs(g), "activation": f}[kind]
        wanted = [score_by_hand(a[b], h[b], channels, n, score, scale) for b in range(B)]
        if min(map(abs, wanted)) > 1e-5:
            break
    got = reference.pal_loss(
        torch.from_numpy(f),
        torch.from_numpy(g),
        torch.from_numpy(h),
        attribution_kind=kind,
        absolute=absolute,
        channels=channels,
        channel_count=n,
        score=score,
        scale=scale,
        reduction="none",
    )
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-10)


@pytest.mark.parametrize("combine", ["sum", "max"])
@pytest.mark.parametrize("normalize", ["none", "peak", "sum"])
def test_the_heatmap_matches_the_formula(seed, combine, normalize):
    rng = np.random.default_rng(seed)
    height, width, image, sigma = 5, 7, (40, 60), 6.0
    points = rng.uniform(-10, 70, size=(B, K, 2))
    weights = rng.uniform(0.5, 2, size=(B, K))
    visible = rng.uniform(size=(B, K)) < 0.8
    wanted = np.zeros((B, height, width))
    for b, i, j in itertools.product(range(B), range(height), range(width)):
        x, y = (j + 0.5) * image[1] / width - 0.5, (i + 0.5) * image[0] / height - 0.5
        values = [
            weights[b, k] * math.exp(-((x - points[b, k, 0]) ** 2 + (y - points[b, k, 1]) ** 2) / (2 * sigma**2))
            for k in range(K)
            if visible[b, k]
        ]
        wanted[b, i, j] = (sum(values) if combine == "sum" else max(values)) if values else 0.0
    if normalize != "none":
        for b in range(B):
            divisor = wanted[b].max() if normalize == "peak" else wanted[b].sum()
            wanted[b] /= divisor or 1.0
    got = reference.landmark_heatmap(
        torch.from_numpy(points),
        (height, width),
        image_size=image,
        sigma=sigma,
        visible=torch.from_numpy(visible),
        weights=torch.from_numpy(weights),
        combine=combine,
        normalize=normalize,
    )
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-10, atol=1e-14)


def test_reductions_apply_the_sample_weights(seed):
    f, g, h = (torch.from_numpy(v) for v in random_inputs(seed))
    weight = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)
    each = reference.pal_loss(f, g, h, channel_count=C, reduction="none")

    def reduced(reduction: str) -> torch.Tensor:
        return reference.pal_loss(f, g, h, channel_count=C, reduction=reduction, sample_weight=weight)

    torch.testing.assert_close(reduced("none"), each * weight)
    torch.testing.assert_close(reduced("sum"), (each * weight).sum())
    torch.testing.assert_close(reduced("mean"), (each * weight).sum() / weight.sum())


def test_a_sum_over_channels_gives_the_same_loss_as_a_mean(seed):
    f, g, h = (torch.from_numpy(v) for v in random_inputs(seed))
    summed = (f * g.abs()).sum(1, keepdim=True)
    ones = torch.ones_like(summed)
    torch.testing.assert_close(
        reference.pal_loss(summed, ones, h, channel_count=1), reference.pal_loss(f, g, h, channel_count=C)
    )


def test_pearson_is_bounded_by_one_and_attains_it(seed):
    _, _, h = (torch.from_numpy(v) for v in random_inputs(seed))
    f = (h * 3 - 7).unsqueeze(1)
    ones = torch.ones_like(f)
    loss = reference.pal_loss(f, ones, h, channel_count=1, reduction="none")
    torch.testing.assert_close(loss, -torch.ones_like(loss))
    torch.testing.assert_close(
        reference.pal_loss(-f, ones, h, channel_count=1, reduction="none"), torch.ones_like(loss)
    )


def test_correlation_is_pearsons(generator: torch.Generator) -> None:
    maps = torch.rand(4, 5, 6, generator=generator)
    heatmap = torch.rand(4, 5, 6, generator=generator)
    expected = [
        torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] for a, b in zip(maps, heatmap, strict=True)
    ]
    found, defined = reference.correlation(maps, heatmap)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert defined.all()
    heatmap[2] = 0.1
    found, defined = reference.correlation(maps, heatmap)
    assert found[2] == 0
    assert defined.tolist() == [True, True, False, True]

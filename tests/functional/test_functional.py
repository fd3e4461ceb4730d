"""`pal_loss`, `landmark_heatmap` and `attribution_map` through the public API, on every backend available here."""

from __future__ import annotations

import pytest
import torch
from support.compare import assert_close

import pal_fast
from pal_fast import dispatch, reference

BACKENDS = [name for name in ("cpu", "reference") if not dispatch.why_not(name, torch.device("cpu"))]


def layer(generator, shape=(3, 6, 7, 7), dtype=torch.float32):
    f = torch.randn(shape, generator=generator, dtype=torch.float64)
    g = torch.randn(shape, generator=generator, dtype=torch.float64)
    return f.to(dtype), g.to(dtype)


def test_the_compiled_cpu_backend_is_available():
    assert "cpu" in BACKENDS, dispatch.why_not("cpu", torch.device("cpu"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_loss_and_gradients_match_the_float64_reference_from_landmarks(generator, backend, dtype):
    f, g = layer(generator, dtype=dtype)
    points = torch.rand(3, 5, 2, generator=generator) * 60 - 5
    f64, g64 = f.double().requires_grad_(), g.double().requires_grad_()
    h = reference.landmark_heatmap(points.double(), (7, 7), image_size=(48, 50), sigma=4.0)
    wanted = reference.pal_loss(f64, g64, h, channel_count=6)
    f.requires_grad_(), g.requires_grad_()
    got = pal_fast.pal_loss(f, g, landmarks=points, image_size=(48, 50), sigma=4.0, backend=backend)
    assert_close(got, wanted, dtype, "loss")
    for name, value, judge in zip(
        "fg", torch.autograd.grad(got, (f, g)), torch.autograd.grad(wanted, (f64, g64)), strict=True
    ):
        assert value.dtype == dtype
        assert_close(value, judge, dtype, f"d{name}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_prior_of_another_size_is_resized_to_the_layer_with_pixel_centres_aligned(backend):
    """A spot drawn at 56 x 56 and resized correlates with the same spot drawn at 7 x 7; with its corners aligned
    instead of its centres it would come to 0.993."""
    spot = torch.tensor([[[24.0, 30.0]]])
    large, small = (pal_fast.landmark_heatmap(spot, size, image_size=56, sigma=12.0) for size in (56, 7))
    for prior in (large, (large * 255).round().to(torch.uint8), large[:, None]):
        loss = pal_fast.pal_loss(small[:, None], None, prior, attribution="activation", backend=backend)
        assert -1 <= loss < -0.999


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_pixel_of_a_finer_prior_counts(generator, backend):
    """Of 56 x 56 pixels on a layer of 7 x 7, bilinear interpolation without antialiasing reads two in eight."""
    f, _ = layer(generator)
    prior = torch.zeros(3, 56, 56)
    prior[:, 24, 24] = 1.0
    loss = pal_fast.pal_loss(f, None, prior, attribution="activation", reduction="none", backend=backend)
    assert loss.all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["permuted", "sliced", "expanded", "mixed layouts", "mixed dtypes"])
def test_any_strides_are_accepted(generator, backend, kind):
    f, g = layer(generator)
    wanted = pal_fast.pal_loss(f, g, torch.rand(3, 7, 7, generator=generator).clone(), backend="reference")
    h = torch.rand(3, 7, 7)
    if kind == "permuted":
        f, g = (t.transpose(2, 3).contiguous().transpose(2, 3) for t in (f, g))
    elif kind == "sliced":
        f, g = (torch.cat([t, t], 3)[..., :7] for t in (f, g))
    elif kind == "expanded":
        f = f[:, :1].expand_as(f)
    elif kind == "mixed layouts":
        f = f.contiguous(memory_format=torch.channels_last)
    else:
        f = f.half()
    got = pal_fast.pal_loss(f, g, h, backend=backend)
    wanted = pal_fast.pal_loss(f.double(), g.double(), h, backend="reference")
    assert_close(got, wanted, torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("argument", ["landmarks", "visible", "weights", "sample_weight"])
def test_annotations_of_any_strides_are_accepted(generator, backend, argument):
    f, g = layer(generator)
    given = {
        "landmarks": torch.rand(3, 5, 2, generator=generator) * 48,
        "visible": torch.rand(3, 5, generator=generator) > 0.3,
        "weights": torch.rand(3, 5, generator=generator),
        "sample_weight": torch.rand(3, generator=generator),
    }
    wanted = pal_fast.pal_loss(f, g, **given, image_size=48, backend="reference")
    given[argument] = torch.stack([given[argument]] * 2, -1)[..., 0]
    assert not given[argument].is_contiguous()
    assert_close(pal_fast.pal_loss(f, g, **given, image_size=48, backend=backend), wanted, torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wide", ["activation", "gradient"])
def test_mixed_dtypes_are_computed_in_the_wider_one(generator, backend, wide):
    f, g = layer(generator)
    f, g = (f.double(), g) if wide == "activation" else (f, g.double())
    f, g = f.requires_grad_(), g.requires_grad_()
    h = torch.rand(3, 7, 7, generator=generator)
    got = pal_fast.pal_loss(f, g, h, backend=backend)
    assert got.dtype == torch.float64
    assert_close(got, pal_fast.pal_loss(f.double(), g.double(), h, backend="reference"), torch.float64)
    got.backward()
    assert f.grad.dtype == f.dtype
    assert g.grad.dtype == g.dtype


def test_a_second_derivative_of_the_fused_loss_raises(generator):
    f, g = (t.requires_grad_() for t in layer(generator))
    loss = pal_fast.pal_loss(f, g, torch.rand(3, 7, 7), backend="cpu")
    (df,) = torch.autograd.grad(loss, f, create_graph=True)
    with pytest.raises(RuntimeError, match='backend="reference"'):
        df.sum().backward()


@pytest.mark.parametrize("argument", ["landmarks", "weights", "heatmap"])
def test_the_prior_receives_gradients(generator, argument):
    f, g = layer(generator, dtype=torch.float64)
    points = (torch.rand(3, 5, 2, generator=generator, dtype=torch.float64) * 48).requires_grad_(
        argument == "landmarks"
    )
    weights = torch.rand(3, 5, generator=generator, dtype=torch.float64).requires_grad_(argument == "weights")
    heatmap = torch.rand(3, 7, 7, generator=generator, dtype=torch.float64).requires_grad_()

    def loss(backend: str | None) -> torch.Tensor:
        if argument == "heatmap":
            return pal_fast.pal_loss(f, g, heatmap, backend=backend)
        return pal_fast.pal_loss(f, g, landmarks=points, weights=weights, image_size=48, backend=backend)

    moved = {"landmarks": points, "weights": weights, "heatmap": heatmap}[argument]
    (got,) = torch.autograd.grad(loss(None), moved)
    (wanted,) = torch.autograd.grad(loss("reference"), moved)
    assert_close(got, wanted, torch.float64)
    assert wanted.norm() > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_gradients_a_prior_that_requires_one_is_accepted_by_every_backend(generator, backend):
    f, g = layer(generator)
    prior = torch.rand(3, 7, 7, generator=generator)
    wanted = pal_fast.pal_loss(f, g, prior, backend="reference")
    with torch.no_grad():
        assert_close(pal_fast.pal_loss(f, g, prior.requires_grad_(), backend=backend), wanted, torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("score", ["pearson", "cross_correlation"])
def test_a_sample_without_a_visible_landmark_is_left_out_of_the_mean(generator, backend, score):
    f, g = layer(generator)
    points = torch.rand(3, 5, 2, generator=generator) * 48
    visible = torch.tensor([True, False, True])[:, None].expand(3, 5)
    options = {"image_size": 48, "score": score, "backend": backend}
    got = pal_fast.pal_loss(f, g, landmarks=points, visible=visible, **options)
    f, g, points = (tensor[[0, 2]] for tensor in (f, g, points))
    assert_close(got, pal_fast.pal_loss(f, g, landmarks=points, **options), torch.float32)


def test_without_an_image_size_landmarks_are_in_cells_of_the_heatmap(generator):
    points = torch.rand(2, 4, 2, generator=generator) * 9
    got = pal_fast.landmark_heatmap(points, (9, 13), sigma=1.0)
    assert torch.equal(got, pal_fast.landmark_heatmap(points, (9, 13), image_size=(9, 13), sigma=1.0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_landmark_heatmap_matches_the_reference_and_broadcasts_weights(generator, backend):
    points = torch.rand(2, 4, 2, generator=generator) * 40
    weights = torch.rand(4, generator=generator)
    got = pal_fast.landmark_heatmap(points, (9, 13), image_size=40, sigma=3.0, weights=weights, backend=backend)
    wanted = reference.landmark_heatmap(
        points.double(), (9, 13), image_size=(40, 40), sigma=3.0, weights=weights.double()
    )
    assert got.dtype == torch.float32
    assert_close(got, wanted, torch.float32)


def test_attribution_map_returns_what_the_loss_standardises(generator):
    f, g = layer(generator)
    maps = pal_fast.attribution_map(f, g, channels="half")
    torch.testing.assert_close(maps, (f * g.abs())[:, :3].mean(1))
    standard = (maps - maps.mean((1, 2), keepdim=True)) / maps.std((1, 2), keepdim=True, correction=0)
    loss = pal_fast.pal_loss(f, g, standard, channels="half")
    torch.testing.assert_close(loss, torch.tensor(-1.0))


@pytest.mark.parametrize(
    ("options", "size", "count"),
    [
        ({"channels": "half"}, 7, 3),
        ({"channels": "half"}, 1, 1),
        ({"channel_count": 5}, 5, 5),
        ({"channel_count": 0.5}, 5, 3),  # halves are rounded up
        ({"channel_count": 0.5}, 7, 4),
        ({"channel_count": 0.01}, 7, 1),
        ({"channel_count": 1.0, "channels": "half"}, 6, 6),
    ],
    ids=str,
)
def test_the_number_of_channels_that_take_part(generator, options, size, count):
    f, _ = layer(generator, (3, size, 7, 7))
    got = pal_fast.attribution_map(f, None, attribution="activation", **options)
    assert torch.equal(got, f[:, :count].mean(1))


def test_an_empty_batch_has_zero_loss():
    f = torch.zeros(0, 3, 4, 4, requires_grad=True)
    loss = pal_fast.pal_loss(f, f.detach(), landmarks=torch.zeros(0, 68, 2), image_size=32)
    loss.backward()
    assert loss.item() == 0
    assert pal_fast.pal_loss(f, f.detach(), landmarks=torch.zeros(0, 68, 2), image_size=32, reduction="none").shape == (
        0,
    )
    assert pal_fast.landmark_heatmap(torch.zeros(0, 68, 2), 5).shape == (0, 5, 5)

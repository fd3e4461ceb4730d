"""Any value for any argument is either accepted or refused with an error that names it: no crash, no NaN."""

from __future__ import annotations

import functools

import pytest
import torch
from support.junk import complaints

import pal_fast

LAYER = {"activation": torch.rand(2, 4, 5, 6), "gradient": torch.rand(2, 4, 5, 6)}
POINTS = torch.rand(2, 3, 2) * 9
OPTIONS = ("attribution", "absolute", "channels", "channel_count")

CALLS = {
    "pal_loss": (
        functools.partial(pal_fast.pal_loss, **{**LAYER, "heatmap": torch.rand(2, 5, 6)}),
        (*LAYER, "heatmap", "sample_weight", *OPTIONS, "score", "scale", "sigma", "reduction", "backend"),
    ),
    "pal_loss from landmarks": (
        functools.partial(pal_fast.pal_loss, **LAYER, landmarks=POINTS, image_size=(9, 9)),
        ("landmarks", "image_size", "visible", "weights", "sigma", "combine", "normalize"),
    ),
    "landmark_heatmap": (
        functools.partial(pal_fast.landmark_heatmap, landmarks=POINTS, size=(4, 4)),
        ("landmarks", "size", "image_size", "sigma", "visible", "weights", "combine", "normalize", "backend"),
    ),
    "attribution_map": (functools.partial(pal_fast.attribution_map, **LAYER), (*LAYER, *OPTIONS)),
}
CASES = [(function, argument) for function, (_, arguments) in CALLS.items() for argument in arguments]


@pytest.mark.parametrize(("function", "argument"), CASES)
@pytest.mark.parametrize("backend", [None, "reference"])
def test_any_value_is_accepted_or_refused_by_name(function, argument, backend):
    call, _ = CALLS[function]
    if backend is not None:
        if argument == "backend" or function == "attribution_map":
            pytest.skip("the backend is not chosen here")
        call = functools.partial(call, backend=backend)
    assert not complaints(call, argument)


@pytest.mark.parametrize("sigma", [1e-15, 1e-3, 1e15])
def test_the_smallest_and_largest_accepted_sigma_give_finite_heatmaps(sigma):
    points = torch.tensor([[[1.0, 1.0], [2.5, 2.0], [-1e30, 1e30]]])
    for backend in (None, "reference"):
        h = pal_fast.landmark_heatmap(points, 4, sigma=sigma, backend=backend)
        assert torch.isfinite(h).all()
        assert h[0, 1, 1] >= 1


@pytest.mark.parametrize("sigma", [1e-30, 1e25])
def test_a_sigma_whose_square_float32_cannot_hold_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma must lie between"):
        pal_fast.landmark_heatmap(POINTS, 4, sigma=sigma)

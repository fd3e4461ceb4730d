"""Every invalid layer, model or option of PALLoss raises a one-sentence error that names it and what is wanted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.networks import batch
from torch import nn

import pal_fast
from pal_fast.messages import near
from pal_fast.options import AttributionOptions


@pytest.mark.parametrize(
    ("layer", "error", "words"),
    [
        ("midle", ValueError, "did you mean 'middle'"),
        ("", ValueError, "not a module"),
        (3, TypeError, "dotted name"),
        ([], ValueError, "at least one layer"),
        (nn.ReLU(), ValueError, "not a module of SmallNet"),
    ],
)
def test_a_layer_that_is_not_in_the_model_is_refused(model, layer, error, words):
    with pytest.raises(error, match=words):
        pal_fast.PALLoss(model, layer)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"attribution": "grad_inputs"}, ValueError, "attribution.*grad_input"),
        ({"absolute": 1}, TypeError, "absolute"),
        ({"channels": "some"}, ValueError, "channels"),
        ({"channels": 0.5}, TypeError, "channels must be one of .*, got 0.5: .* is channel_count"),
        ({"channel_count": 0}, ValueError, "channel_count"),
        ({"channel_count": 1.5}, ValueError, "channel_count"),
        ({"score": "cosine"}, ValueError, "score"),
        ({"scale": 2}, TypeError, "scale"),
        ({"target": "logit"}, ValueError, "target"),
        ({"image_size": (1.5, 2)}, TypeError, "image_size"),
        ({"sigma": -1.0}, ValueError, "sigma"),
        ({"combine": "mean"}, ValueError, "combine"),
        ({"normalize": "l2"}, ValueError, "normalize"),
        ({"regions": "ears"}, ValueError, "regions.*eyes"),
        ({"regions": []}, ValueError, "at least one"),
        ({"regions": {"eyes": "much"}}, TypeError, "eyes"),
        ({"weight": float("nan")}, ValueError, "weight"),
        ({"weight": "1"}, TypeError, "weight"),
        ({"reduction": "average"}, ValueError, "reduction"),
        ({"second_order": "approximate"}, ValueError, "second_order"),
        ({"second_order": "finite_difference"}, TypeError, "head="),
        ({"head": nn.Identity()}, ValueError, "finite_difference"),
        ({"layout": "NCWH"}, ValueError, "layout"),
        ({"backend": "gpu"}, ValueError, "backend"),
    ],
)
def test_invalid_options_are_refused(model, options, error, words):
    with pytest.raises(error, match=words):
        pal_fast.PALLoss(model, "middle", **options)


def test_the_error_for_an_unknown_layer_lists_the_available_modules(model):
    for name in ("xyz", ""):
        with pytest.raises(ValueError, match=r"at its top are 'stem', 'middle', 'top', 'pool', 'classifier' .*doctor"):
            pal_fast.PALLoss(model, name)
    many = nn.Sequential(*(nn.Identity() for _ in range(30)))
    with pytest.raises(ValueError, match="'11' and 18 more"):
        pal_fast.PALLoss(many, "xyz")
    with pytest.raises(ValueError, match=r"not a module of ReLU$"):
        pal_fast.PALLoss(nn.ReLU(), "xyz")


def test_a_duplicate_name_is_suggested_once():
    assert near("resnet5", ["resnet50", "resnet18", "resnet50"]).count("'resnet50'") == 1


@pytest.mark.parametrize("whole", [np.int64, np.uint8, np.int32])
@pytest.mark.parametrize("real", [np.float16, np.float32, np.float64])
def test_numpy_scalars_are_accepted_as_numbers(model, whole, real):
    images, _, landmarks = batch(dtype=torch.float32)

    def loss(whole, real):
        sizes = {"image_size": (whole(16), whole(20)), "sigma": real(1.5), "channel_count": whole(3)}
        with pal_fast.PALLoss(model, "middle", weight=real(0.5), **sizes) as pal:
            return pal(model(images), landmarks)

    torch.testing.assert_close(loss(whole, real), loss(int, float), rtol=0, atol=0)
    assert AttributionOptions(channel_count=real(0.5)) == AttributionOptions(channel_count=0.5)
    assert AttributionOptions(channel_count=whole(3)).count(8) == 3
    heatmap = pal_fast.landmark_heatmap(landmarks, whole(7), image_size=whole(16), sigma=whole(2))
    assert torch.equal(heatmap, pal_fast.landmark_heatmap(landmarks, 7, image_size=16, sigma=2))


@pytest.mark.parametrize("given", [np.bool_(True), True, np.array([1.0]), torch.tensor(1.0), 1j])
def test_booleans_arrays_tensors_and_complex_numbers_are_refused_as_numbers(model, given):
    for name in ("weight", "sigma", "image_size", "channel_count"):
        with pytest.raises(TypeError, match=name):
            pal_fast.PALLoss(model, "middle", **{name: given})


def test_a_model_that_is_not_a_module_is_refused():
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        pal_fast.PALLoss(lambda x: x, "middle")

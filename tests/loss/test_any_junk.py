"""Any value for any argument of PALLoss and its call is either accepted or refused with an error that names it."""

from __future__ import annotations

import pytest
import torch
from support.junk import complaints
from torch import Tensor, nn

import pal_fast

IMAGES = torch.rand(2, 3, 12, 12)
POINTS = torch.rand(2, 3, 2) * 12
HEATMAP = torch.rand(2, 5, 6)
LABELS = torch.tensor([0, 1])


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.GELU(), nn.Conv2d(4, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(36, 5)
    )


def loss_with_options(**given: object) -> Tensor:
    arguments = {"model": network(), "layer": "2", "backend": "reference", **given}
    model = arguments.pop("model")
    pal = pal_fast.PALLoss(model, arguments.pop("layer"), **arguments)
    return pal(model(IMAGES), POINTS, labels=LABELS)


def loss_with_call_arguments(target: str = "sum", **given: object) -> Tensor:
    model = network()
    pal = pal_fast.PALLoss(model, "2", target=target)
    logits = model(IMAGES)
    prior = {} if "heatmap" in given else {"landmarks": POINTS}
    arguments = {"logits": logits, "labels": LABELS, **prior, **given}
    return pal(arguments.pop("logits"), **arguments)


def attribution_with(**given: object) -> Tensor:
    return pal_fast.attribute(**{"model": network(), "layer": "2", "images": IMAGES, **given})[0]


@pytest.mark.parametrize(
    "argument",
    [
        *("model", "layer", "attribution", "absolute", "channels", "channel_count", "score", "scale", "target"),
        *("image_size", "sigma", "combine", "normalize", "regions", "weight", "reduction", "second_order", "head"),
        *("layout", "backend"),
    ],
)
def test_options_are_accepted_or_refused_by_name(argument):
    assert not complaints(loss_with_options, argument)


@pytest.mark.parametrize("argument", ["logits", "landmarks", "visible", "sample_weight", "heatmap"])
def test_call_arguments_are_accepted_or_refused_by_name(argument):
    assert not complaints(loss_with_call_arguments, argument)


def test_labels_are_accepted_or_refused_by_name():
    assert not complaints(lambda **given: loss_with_call_arguments("label", **given), "labels")


@pytest.mark.parametrize("argument", ["model", "layer", "attribution", "channels", "channel_count", "target", "layout"])
def test_attribute_arguments_are_accepted_or_refused_by_name(argument):
    assert not complaints(attribution_with, argument)


def test_mistimed_calls_raise_an_error_that_is_both_value_error_and_runtime_error():
    model = network()
    pal = pal_fast.PALLoss(model, "2")
    logits = model(IMAGES)
    calls = {
        "grad mode is off": lambda: torch.no_grad()(pal)(logits, POINTS),
        "has not run": lambda: (pal(model(IMAGES), POINTS), pal(logits, POINTS)),
        "carry no gradient": lambda: pal(model(IMAGES).detach(), POINTS),
        "do not depend": lambda: (model(IMAGES), pal(torch.ones(2, 5, requires_grad=True) * 2, POINTS)),
        "eval mode": lambda: pal(model.eval()(IMAGES), POINTS),
        "removed": lambda: (pal.remove(), pal(model.train()(IMAGES), POINTS)),
    }
    for words, call in calls.items():
        for kind in (ValueError, RuntimeError):
            with pytest.raises(kind, match=words):
                call()

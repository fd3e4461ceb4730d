"""`pal.check` finds what is wrong at a layer, and leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
from support.networks import SmallNet, Tokens, batch
from torch import nn

import pal_fast
import pal_fast.nn


def state_of(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def test_a_good_layer_has_no_problem_and_a_cost():
    model = SmallNet()
    report = pal_fast.PALLoss(model, ["stem", "middle"]).check(batch(dtype=torch.float32)[0])
    assert report.problems == []
    stem, middle = report.layers
    assert middle.shape == (4, 8, 8, 8)
    assert middle.layout == "NCHW"
    assert middle.flat_share == 0
    assert stem.weights_below[0] >= 2
    assert stem.weights_above[1] > middle.weights_above[1]
    assert middle.weights_above[0] >= 3
    assert 0.5 < report.cost < 20
    assert any("prepare_head" in note for note in middle.slow)
    text = str(report)
    assert "layer middle: (4, 8, 8, 8)" in text
    assert "no problem found" in text


def test_the_model_is_left_as_it_was():
    model = SmallNet().eval()
    model.top.train()
    model.stem[0].weight.grad = torch.ones_like(model.stem[0].weight)
    images, _, _ = batch(dtype=torch.float32)
    before, random = state_of(model), torch.get_rng_state()
    pal_fast.PALLoss(model, "middle").check(images)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert (model.training, model.stem.training, model.top.training) == (False, False, True)
    assert torch.equal(model.stem[0].weight.grad, torch.ones_like(model.stem[0].weight))
    assert model.top[0].weight.grad is None
    assert torch.equal(torch.get_rng_state(), random)


def test_tokens_are_seen_as_a_grid():
    report = pal_fast.PALLoss(Tokens(), "blocks.1").check(batch(dtype=torch.float32)[0])
    assert report.problems == []
    assert report.layers[0].shape == (4, 16, 4, 4)
    assert report.layers[0].layout == "tokens, 1 + 4 x 4"


def test_a_second_derivative_that_is_not_finite_is_named():
    class Normalising(SmallNet):
        def head(self, x):
            x = self.top(x)
            return self.classifier(self.pool(nn.functional.normalize(x * 0, dim=1) + x).flatten(1))

        def forward(self, images):
            return self.head(self.middle(self.stem(images)))

    report = pal_fast.PALLoss(Normalising(), "middle").check(batch(dtype=torch.float32)[0])
    assert "the second derivative is not finite" in report.problems[0]
    assert "PROBLEM" in str(report)


@pytest.mark.parametrize("attribution", ["grad", "grad_input"])
def test_a_gradient_that_is_constant_in_space_is_told(attribution):
    model = SmallNet()
    report = pal_fast.PALLoss(model, "top", attribution=attribution).check(batch(dtype=torch.float32)[0])
    constant = any("constant in space" in problem or "moves no parameter" in problem for problem in report.problems)
    assert constant == (attribution == "grad")


def test_a_layer_without_second_derivative_above_is_told():
    class Gated(SmallNet):
        gate = staticmethod(nn.functional.hardsigmoid)

        def forward(self, images):
            return self.head(self.gate(self.middle(self.stem(images))))

    images, _, _ = batch(dtype=torch.float32)
    model = Gated()
    assert pal_fast.nn.replace_hardsigmoid(model) == ()  # there is no module to replace
    (problem,) = pal_fast.PALLoss(model, "middle").check(images).problems
    assert "or write F.hardsigmoid(x) as F.relu6(x + 3) / 6" in problem
    logits = model.train()(images)
    model.gate = lambda x: nn.functional.relu6(x + 3) / 6
    torch.testing.assert_close(model(images), logits)
    assert pal_fast.PALLoss(model, "middle").check(images).problems == []


def test_frozen_weights_are_told():
    model = SmallNet()
    model.requires_grad_(False)
    model.classifier.bias.requires_grad_(True)
    report = pal_fast.PALLoss(model, "middle").check(batch(dtype=torch.float32)[0])
    assert "frozen" in report.problems[0]

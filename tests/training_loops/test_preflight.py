"""`pal.check` finds problems at a layer, and leaves the model unchanged."""

from __future__ import annotations

import time
import warnings

import pytest
import torch
from support.networks import SmallNet, Tokens, batch
from torch import nn
from torch.utils.checkpoint import checkpoint

import pal_fast
import pal_fast.nn
from pal_fast import preflight


def state_of(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def test_a_suitable_layer_has_a_cost_and_no_problem():
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
    assert 0.1 < report.cost < 200  # the network takes microseconds, and the machine may be loaded
    assert any("prepare_head" in note for note in middle.slow)
    text = str(report)
    assert "layer middle: (4, 8, 8, 8)" in text
    assert "no problem found" in text


@pytest.mark.parametrize(
    ("make", "layer", "note"),
    [(SmallNet, "middle", "1 BatchNorm above"), (Tokens, "blocks.0", "5 LayerNorms and 2 attentions above")],
)
def test_check_suggests_prepare_head_until_it_has_been_applied(make, layer, note):
    model, (images, _, _) = make(), batch(dtype=torch.float32)
    pal = pal_fast.PALLoss(model, layer)
    assert any(note in suggestion and "prepare_head" in suggestion for suggestion in pal.check(images).layers[0].slow)
    pal_fast.nn.prepare_head(model, layer, images)
    assert not any("prepare_head" in suggestion for suggestion in pal.check(images).layers[0].slow)


def test_check_leaves_the_model_unchanged():
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


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_reduction_does_not_matter(monkeypatch, reduction):
    # The cost is a ratio of times of a few ms: this process's own, which other work on the machine does not change.
    monkeypatch.setattr(preflight.time, "perf_counter", time.process_time)
    report = pal_fast.PALLoss(SmallNet(), ["stem", "middle"], reduction=reduction).check(batch(dtype=torch.float32)[0])
    assert report.problems == []
    assert report.layers[1].weights_above[0] >= 3
    assert 0.5 < report.cost < 20


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_grad_mode_does_not_matter(mode):
    pal = pal_fast.PALLoss(SmallNet(), "middle", target="label")
    images, labels, landmarks = batch(dtype=torch.float32)
    with mode():
        assert pal.check(images * 1, labels * 1).problems == []
        assert not torch.is_grad_enabled()
    pal(pal.model(images), landmarks, labels=labels).backward()


def test_tokens_are_reported_as_a_grid():
    report = pal_fast.PALLoss(Tokens(), "blocks.1").check(batch(dtype=torch.float32)[0])
    assert report.problems == []
    assert report.layers[0].shape == (4, 16, 4, 4)
    assert report.layers[0].layout == "tokens, 1 + 4 x 4"


class Normalising(SmallNet):
    """Normalises the features above the layer, multiplied by `factor`, optionally in an activation checkpoint."""

    factor, checkpointed = 0.0, False

    def normalised(self, x):
        return nn.functional.normalize(x * self.factor, dim=1) + x

    def forward(self, images):
        x = self.top(self.middle(self.stem(images)))
        x = checkpoint(self.normalised, x, use_reentrant=False) if self.checkpointed else self.normalised(x)
        return self.classifier(self.pool(x).flatten(1))


def test_a_second_derivative_that_is_not_finite_is_reported():
    report = pal_fast.PALLoss(Normalising(), "middle").check(batch(dtype=torch.float32)[0])
    assert "the second derivative is not finite" in report.problems[0]
    assert "PROBLEM" in str(report)


def test_the_first_call_warns_of_a_norm_only_where_its_vector_is_zero():
    images, _, landmarks = batch(dtype=torch.float32)
    with pytest.warns(UserWarning, match="layer 'middle': the second derivative will not be finite"):
        loss = pal_fast.PALLoss(model := Normalising(), "middle")(model(images), landmarks)
    loss.backward()
    assert model.stem[0].weight.grad.isnan().any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Normalising(act=nn.GELU)
        model.factor = 1.0
        pal_fast.PALLoss(model, "middle")(model(images), landmarks)


def test_inspecting_norms_recomputes_no_checkpoint():
    model = Normalising(act=nn.GELU)
    model.factor, model.checkpointed = 1.0, True
    calls, normalised = [], model.normalised
    model.normalised = lambda x: (calls.append(torch._C._current_graph_task_id()), normalised(x))[1]
    images, _, landmarks = batch(dtype=torch.float32)
    pal_fast.PALLoss(model, "middle")(model(images), landmarks)
    assert len(calls) == 2  # the forward, and the inner gradient
    assert calls[0] == -1
    assert calls[1] != -1


@pytest.mark.parametrize("channels", ["mean", "half", "all", "each"])
@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("attribution", ["grad", "grad_input", "activation"])
def test_an_attribution_that_is_constant_in_space_is_reported(attribution, absolute, channels):
    """Below a global average pool and a linear layer the gradient is constant; times the activation it is not."""
    pal = pal_fast.PALLoss(SmallNet(), "top", attribution=attribution, absolute=absolute, channels=channels)
    report = pal.check(batch(dtype=torch.float32)[0])
    assert report.layers[0].flat_share == (attribution == "grad")
    wanted = ["layer 'top': the attribution is constant in space"] if attribution == "grad" else []
    assert [problem[: problem.find(":", 13)] for problem in report.problems] == wanted


class PrependZeroChannels(nn.Module):
    """Prepends as many zero channels as the input has."""

    def forward(self, x):
        return torch.cat([x * 0, x], 1)


@pytest.mark.parametrize(
    ("options", "share", "words"),
    [
        ({"channels": "mean"}, 0, "0% of the samples"),
        ({"channels": "all"}, 0, "0% of the samples"),
        ({"channels": "half"}, 1, "100% of the samples"),
        ({"channels": "mean", "channel_count": 4}, 1, "100% of the samples"),
        ({"channels": "each"}, 0.5, "50% of the samples' channels"),
        ({"channels": "each", "channel_count": 5}, 0.8, "80% of the samples' channels"),
    ],
)
def test_the_constant_share_counts_only_the_channels_in_use(options, share, words):
    body = [nn.Conv2d(3, 4, 3), PrependZeroChannels(), nn.Conv2d(8, 4, 3), nn.SiLU()]
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(4 * 12 * 12, 5))
    report = pal_fast.PALLoss(model, "1", **options).check(batch(dtype=torch.float32)[0])
    assert report.layers[0].flat_share == pytest.approx(share)
    assert f"attribution constant in space: {words}" in str(report)
    assert any("constant in space" in problem for problem in report.problems) == (share == 1)


def test_an_operation_without_second_derivative_above_the_layer_is_reported():
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


class NoMessage(torch.autograd.Function):
    """Its second derivative raises an error without a message."""

    @staticmethod
    def forward(ctx, input):
        return input.clone()

    @staticmethod
    def backward(ctx, grad):
        return NoMessageBackward.apply(grad)


class NoMessageBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad):
        return grad.clone()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError


def test_an_error_without_a_message_is_reported_by_its_type():
    model = SmallNet()
    model.classifier.register_forward_pre_hook(lambda module, inputs: NoMessage.apply(*inputs))
    (layer,) = pal_fast.PALLoss(model, "middle").check(batch(dtype=torch.float32)[0]).layers
    assert layer.problems == ["RuntimeError"]


def test_frozen_weights_are_reported():
    model = SmallNet()
    model.requires_grad_(False)
    model.classifier.bias.requires_grad_(True)
    report = pal_fast.PALLoss(model, "middle").check(batch(dtype=torch.float32)[0])
    assert "frozen" in report.problems[0]


def test_a_target_that_uses_labels_is_tried_with_and_without_them():
    images, labels, _ = batch(dtype=torch.float32)
    by_label = pal_fast.PALLoss(SmallNet(), "middle", target="label")
    by_own = pal_fast.PALLoss(SmallNet(), "middle", target=lambda z, y: z.gather(1, y[:, None])[:, 0])
    for pal in (by_label, by_own):
        assert pal.check(images).problems == []
        assert pal.check(images, labels).problems == []


def test_unsuitable_labels_raise_and_are_not_reported_as_a_problem_of_the_layer():
    images, labels, _ = batch(dtype=torch.float32)
    with pytest.raises(ValueError, match="labels must be a tensor of integers"):
        pal_fast.PALLoss(SmallNet(), "middle", target="label").check(images, labels[:2])
    soft = pal_fast.PALLoss(SmallNet(), "middle", target=lambda z, y: (z * y).sum(1))
    with pytest.raises(ValueError, match=r"labels are needed to try this target, as check\(images, labels\)"):
        soft.check(images)
    assert soft.check(images, torch.rand(4, 5)).problems == []
    with pytest.raises(RuntimeError, match="size of tensor"):
        soft.check(images, torch.rand(4, 3))

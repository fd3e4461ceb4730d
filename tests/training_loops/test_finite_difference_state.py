"""Finite differences of heads that change: modules with state, checkpoints, and heads that start in place."""

from __future__ import annotations

import pytest
import torch
from support.differences import Kinked, finite
from support.networks import SmallNet, batch, gradient_error, judged, twin
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint


def assert_exact(model, judge):
    """Over two steps, gradients and buffers equal those of the double backward, which runs the head once per step."""
    images, _, landmarks = batch()
    pal = finite(model, "middle", model.head)
    for _ in range(2):
        _, gradients = judged(judge, "middle", images, None, landmarks)
        model.zero_grad()
        pal(model(images), landmarks).backward()
        assert gradient_error(model, gradients) < 1e-5
        for name, buffer in judge.named_buffers():
            torch.testing.assert_close(model.get_buffer(name), buffer)


@pytest.mark.parametrize("norm", [spectral_norm, nn.utils.spectral_norm], ids=["parametrization", "hook"])
def test_every_pass_starts_from_the_spectral_norm_vectors_of_the_main_pass(norm):
    model = SmallNet(act=nn.GELU, norm=lambda c: nn.GroupNorm(1, c)).double()
    norm(model.top[0])
    norm(model.classifier)
    assert_exact(model, twin(model))


class Centring(nn.Module):
    """Subtracts a running mean; with `seen`, the mean includes this batch."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen
        self.register_buffer("mean", torch.zeros(1, 8, 1, 1))

    def forward(self, x):
        before = self.mean.clone()
        if self.training:
            with torch.no_grad():
                self.mean.lerp_(x.mean((0, 2, 3), keepdim=True), 0.1)
        return x - (self.mean if self.seen else before)


def centred(seen):
    model = SmallNet(act=nn.GELU, norm=lambda c: nn.GroupNorm(1, c))
    model.top.insert(0, Centring(seen))
    return model.double()


def test_state_computed_from_activations_that_affects_the_logits_is_refused():
    model = centred(seen=True)
    images, _, landmarks = batch()
    with pytest.raises(RuntimeError, match=r"sees through the buffers top\.0\.mean"):
        finite(model, "middle", model.head)(model(images), landmarks)


class Counting(nn.Module):
    """Keeps state computed from the activations that does not affect its output."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 8, 1, 1))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.count += 1
        self.mean = self.mean + 0.1 * (x.detach().mean((0, 2, 3), keepdim=True) - self.mean)
        return x


def test_state_that_does_not_affect_the_logits_is_preserved():
    model = SmallNet(act=nn.GELU)
    model.top.insert(0, Counting())
    assert_exact(model.double(), twin(model))


class CheckpointedHead(Kinked):
    """The head's convolution and kink under non-reentrant checkpointing."""

    def head(self, x):
        top = checkpoint(self.top, 4 * x, use_reentrant=False)
        return self.classifier(torch.tanh(top).mean((2, 3)))


def test_a_smooth_head_in_a_checkpoint_is_exact():
    model = CheckpointedHead(nn.GELU()).double()
    assert_exact(model, twin(model))


def test_a_kink_in_a_checkpoint_is_refused():
    model = CheckpointedHead(nn.ReLU())
    images, _, landmarks = batch(dtype=torch.float32)
    with pytest.raises(RuntimeError, match=r"cannot keep a kink on its side in an activation checkpoint.*relu"):
        finite(model, "middle", model.head)(model(images), landmarks)


def test_a_kink_in_a_checkpoint_is_exact_with_a_head_given_without_checkpointing():
    model = CheckpointedHead(nn.ReLU()).double()
    images, _, landmarks = batch()
    _, gradients = judged(twin(model), "middle", images, None, landmarks)
    finite(model, "middle", lambda x: Kinked.head(model, x))(model(images), landmarks).backward()
    assert gradient_error(model, gradients) < 1e-5


class FirstAboveLayer(nn.Module):
    """Applies `first` directly to the layer's output."""

    def __init__(self, first):
        super().__init__()
        self.middle, self.first = nn.Conv2d(3, 8, 3), first
        self.top, self.classifier = nn.Conv2d(8, 6, 3), nn.Linear(6, 5)

    def head(self, x):
        return self.classifier(torch.tanh(self.top(self.first(x))).mean((2, 3)))

    def forward(self, images):
        return self.head(self.middle(images))


@pytest.mark.filterwarnings("ignore:.*overwritten in place")
@pytest.mark.parametrize("attribution", ["grad_input", "grad"])
@pytest.mark.parametrize("first", [nn.ReLU, nn.SiLU, nn.Hardswish])
def test_a_layer_that_the_head_overwrites_is_refused(first, attribution):
    """The captured activation is then the overwritten one, and each further pass would overwrite it again."""
    model = FirstAboveLayer(first(inplace=True))
    images, _, landmarks = batch(dtype=torch.float32)
    pal = finite(model, "middle", model.head, attribution=attribution)
    with pytest.raises(RuntimeError, match="overwritten in place"):
        pal(model(images), landmarks)


@pytest.mark.parametrize("first", [nn.ReLU, nn.SiLU])
def test_a_head_that_begins_in_place_where_the_model_does_not_is_exact(first):
    model = FirstAboveLayer(first()).double()
    images, _, landmarks = batch()
    _, gradients = judged(twin(model), "middle", images, None, landmarks)
    pal = finite(model, "middle", model.head)
    logits = model(images)
    model.first.inplace = True
    pal(logits, landmarks).backward()
    assert gradient_error(model, gradients) < 1e-5


def test_logits_without_a_class_dimension():
    class OneLogit(SmallNet):
        def head(self, x):
            return super().head(x)[:, 0]

        def forward(self, images):
            return super().forward(images)[:, 0]

    model = OneLogit(act=nn.GELU).double()
    assert_exact(model, twin(model))

"""Fused attention has no second derivative: MATH above the layer, fused kernels below it, and settings restored."""

from __future__ import annotations

import threading

import pytest
import torch
from support.compare import relative_error
from support.networks import Tokens, batch, gradient_error, judged, twin
from torch import nn

import pal_fast
from pal_fast.attribution.graph import nodes_between


def grid(f):
    return f[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)


@pytest.fixture
def model():
    return Tokens().double()


def fused(tensor, above):
    return [n.name() for n in nodes_between(tensor.grad_fn, above) if "ScaledDotProduct" in n.name()]


def test_a_vit_with_fused_attention_matches_the_double_backward(model):
    images, labels, landmarks = batch()
    wanted, gradients = judged(twin(model), "blocks.0", images, labels, landmarks, view=grid)
    pal = pal_fast.PALLoss(model, "blocks.0")
    logits = model(images)
    loss = nn.functional.cross_entropy(logits, labels) + pal(logits, landmarks)
    loss.backward()
    assert relative_error(loss, wanted) < 1e-10
    assert gradient_error(model, gradients) < 1e-9


def test_attention_below_the_layer_keeps_its_fused_kernel(model):
    images, _, _ = batch()
    held = []
    model.blocks[0].register_forward_hook(lambda m, a, out: held.append(out))
    x = images.requires_grad_()
    with pal_fast.PALLoss(model, "blocks.0"):
        logits = model(x)
    assert fused(held[0], [x])
    assert not fused(logits, held)


def test_an_encoder_layer_with_multihead_attention_matches_the_double_backward():
    class Encoder(Tokens):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True) for _ in "123"])

    model = Encoder().double()
    images, labels, landmarks = batch()
    wanted, gradients = judged(twin(model), "blocks.1", images, labels, landmarks, view=grid)
    pal = pal_fast.PALLoss(model, "blocks.1")
    logits = model(images)
    (nn.functional.cross_entropy(logits, labels) + pal(logits, landmarks)).backward()
    assert gradient_error(model, gradients) < 1e-9
    assert wanted > 0


def sdpa_settings():
    cuda = torch.backends.cuda
    return cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled(), cuda.cudnn_sdp_enabled()


def test_attention_settings_are_restored_after_the_forward(model):
    before = sdpa_settings()
    seen = []
    model.norm.register_forward_hook(lambda *_: seen.append(sdpa_settings()))
    pal = pal_fast.PALLoss(model, "blocks.0")
    model(batch()[0])
    assert seen == [(False, False, True, False)]
    assert sdpa_settings() == before
    with torch.no_grad():
        model(batch()[0])
    assert seen[1] == before
    pal.remove()


def test_two_threads_do_not_restore_each_others_attention_settings():
    """The first thread to enter its head leaves it while the second is still inside its own."""
    before = sdpa_settings()
    images, labels, landmarks = batch()
    models = [Tokens().double() for _ in range(2)]
    judges = [judged(twin(model), "blocks.0", images, labels, landmarks, view=grid)[1] for model in models]
    inside, left = [threading.Event() for _ in models], threading.Event()
    models[0].blocks[1].register_forward_pre_hook(lambda *_: (inside[0].set(), inside[1].wait(30))[0])
    models[1].blocks[0].register_forward_hook(lambda *_: (inside[0].wait(30), None)[1])
    pals = [pal_fast.PALLoss(model, "blocks.0") for model in models]
    models[1].blocks[1].register_forward_pre_hook(lambda *_: (inside[1].set(), left.wait(30), None)[2])

    def step(index):
        logits = models[index](images)
        if index == 0:
            left.set()
        (nn.functional.cross_entropy(logits, labels) + pals[index](logits, landmarks)).backward()

    threads = [threading.Thread(target=step, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(gradient_error(model, judge) < 1e-9 for model, judge in zip(models, judges, strict=True))
    assert sdpa_settings() == before


def test_attention_settings_are_restored_after_an_exception(model):
    before = sdpa_settings()

    def fail(*_):
        raise KeyError("in the head")

    handle = model.norm.register_forward_hook(fail)
    pal = pal_fast.PALLoss(model, "blocks.0")
    with pytest.raises(KeyError):
        model(batch()[0])
    assert sdpa_settings() == before
    assert pal._capture.captured[0].output is not None
    handle.remove()


def test_after_an_interrupted_forward_the_body_has_its_kernels_again(model):
    """A hook of the model is not called after a KeyboardInterrupt, so the next forward restores the settings."""
    before, inside = sdpa_settings(), []

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = model.norm.register_forward_hook(interrupt)
    pal = pal_fast.PALLoss(model, "blocks.1")
    with pytest.raises(KeyboardInterrupt):
        model(batch()[0])
    handle.remove()
    model.blocks[0].register_forward_hook(lambda *_: inside.append(sdpa_settings()))
    model(batch()[0])
    assert inside == [before]
    assert sdpa_settings() == before
    pal.remove()


def test_attention_settings_are_unchanged_when_only_part_of_the_model_is_called(model):
    before = sdpa_settings()
    pal = pal_fast.PALLoss(model, "blocks.0")
    images, _, landmarks = batch()
    tokens = model.patches(images).flatten(2).transpose(1, 2)
    tokens = torch.cat([model.class_token.expand(len(tokens), -1, -1), tokens], 1)
    logits = model.head_after(0)(model.blocks[0](tokens))
    assert sdpa_settings() == before
    with pytest.raises(RuntimeError, match=r"fused attention.*call the model itself"):
        pal(logits, heatmap=torch.rand(4, 4, 4, dtype=torch.float64))
    assert landmarks.shape == (4, 5, 2)


def test_a_users_own_choice_of_the_math_backend_is_kept(model):
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        before = sdpa_settings()
        pal = pal_fast.PALLoss(model, "blocks.0")
        model(batch()[0])
        assert sdpa_settings() == before
        assert pal._capture.captured[0].output is not None


def test_a_layer_above_which_only_the_class_token_reaches_the_logits_warns(model):
    images, _, landmarks = batch()
    pal = pal_fast.PALLoss(model, "blocks.2")
    with pytest.warns(UserWarning, match=r"choose an earlier one, such as 'blocks\.1'"):
        loss = pal(model(images), landmarks)
    loss.backward()
    assert loss == 0
    report = pal.check(images)
    assert "blocks.2" in report.problems[0]
    assert "zero" in report.problems[0]
    assert "'blocks.1'" in report.problems[0]

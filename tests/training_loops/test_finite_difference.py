"""Finite differences: central differences equal the double backward."""

from __future__ import annotations

import copy

import pytest
import torch
from support.compare import relative_error
from support.differences import finite
from support.networks import Block, SmallNet, Tokens, batch, by_hand, gradient_error, judged, twin
from torch import nn

import pal_fast.nn


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-5), (torch.float32, 2e-3)])
def test_a_vit_with_fused_attention_matches_the_double_backward(dtype, bound):
    model = Tokens().to(dtype)
    images, labels, landmarks = batch(dtype=dtype)
    wanted, gradients = judged(twin(model), "blocks.0", images, labels, landmarks, view=Tokens.grid_of)
    pal = finite(model, "blocks.0", model.head_after(0))
    logits = model(images)
    loss = nn.functional.cross_entropy(logits, labels) + pal(logits, landmarks)
    loss.backward()
    assert relative_error(loss, wanted) < 1e-5
    assert gradient_error(model, gradients) < bound


def test_a_head_with_batch_norm_in_train_mode_is_exact_including_its_statistics():
    model = SmallNet(act=nn.GELU).double()
    judge = twin(model)
    images, labels, landmarks = batch()
    wanted, gradients = judged(judge, "middle", images, labels, landmarks)
    pal = finite(model, "middle", model.head)
    logits = model(images)
    loss = nn.functional.cross_entropy(logits, labels) + pal(logits, landmarks)
    loss.backward()
    assert relative_error(loss, wanted) < 1e-10
    assert gradient_error(model, gradients) < 1e-5
    for name, buffer in judge.named_buffers():
        assert relative_error(model.get_buffer(name), buffer) < 1e-12, name


def test_a_prepared_head_with_batch_norm_in_train_mode_is_exact():
    model = SmallNet(act=nn.GELU).double()
    images, _, landmarks = batch()
    _, gradients = judged(twin(model), "middle", images, None, landmarks)
    assert "top.1" in pal_fast.nn.prepare_head(model, "middle", images).replaced
    finite(model, "middle", model.head)(model(images), landmarks).backward()
    assert gradient_error(model, gradients) < 1e-5


def test_dropout_masks_of_the_main_pass_are_reused_and_the_random_state_is_kept(seed):
    class Dropping(Tokens):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Block(16, dropout=0.5) for _ in range(3)])

    model = Dropping().double()
    images, _, landmarks = batch()
    judge = twin(model)
    torch.manual_seed(seed)
    wanted, gradients = judged(judge, "blocks.0", images, None, landmarks, view=Tokens.grid_of)
    pal = finite(model, "blocks.0", model.head_after(0))
    torch.manual_seed(seed)
    logits = model(images)
    after = torch.get_rng_state()
    loss = pal(logits, landmarks)
    assert torch.equal(torch.get_rng_state(), after)
    loss.backward()
    assert relative_error(loss, wanted) < 1e-10
    assert gradient_error(model, gradients) < 1e-4


@pytest.mark.parametrize("target", ["label", "predicted", "callable"])
def test_targets_other_than_the_sum(target):
    model = SmallNet(act=nn.SiLU, norm=lambda c: nn.GroupNorm(1, c)).double()
    images, labels, landmarks = batch()

    def scalar(logits):
        picked = logits.gather(1, (logits.argmax(1) if target == "predicted" else labels)[:, None])
        return picked.square().sum() if target == "callable" else picked.sum()

    _, gradients = judged(twin(model), "middle", images, None, landmarks, scalar=scalar)
    own = (lambda z, y: z.gather(1, y[:, None])[:, 0].square()) if target == "callable" else target
    pal = finite(model, "middle", model.head, target=own)
    pal(model(images), landmarks, labels=labels).backward()
    assert gradient_error(model, gradients) < 1e-5


def test_under_autocast_the_repeated_passes_use_the_forwards_precision():
    model = SmallNet(act=nn.GELU, norm=lambda c: nn.GroupNorm(1, c))
    images, labels, landmarks = batch(8, dtype=torch.float32)
    wanted, gradients = judged(twin(model), "middle", images, labels, landmarks)
    hand = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = by_hand(hand, images, labels, landmarks)
    loss.backward()
    pal = finite(model, "middle", model.head)
    passed = []
    model.classifier.register_forward_hook(lambda module, arguments, logits: passed.append(logits.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    loss = nn.functional.cross_entropy(logits.float(), labels) + pal(logits, landmarks)
    loss.backward()
    assert len(passed) >= 3
    assert set(passed) == {torch.bfloat16}
    assert relative_error(loss, wanted) < 0.05
    # A difference of two passes rounded to 8 bits: over 150 seeds its error exceeds that of the exact engine, which
    # differentiates the rounding, by 0.04, and by 0.08 at most.
    assert gradient_error(model, gradients) < gradient_error(hand, gradients) + 0.25


def test_the_step_size_follows_the_coarsest_dtype_in_the_head():
    """Under autocast the residual stream of a ViT is float32, and each term added to it is rounded to 8 bits."""
    model = Tokens()
    images, _, landmarks = batch(8, dtype=torch.float32)
    _, gradients = judged(twin(model), "blocks.0", images, None, landmarks, view=Tokens.grid_of)
    pal = finite(model, "blocks.0", model.head_after(0))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    pal(logits, landmarks).backward()
    assert gradient_error(model, gradients) < 1  # with float32's step size: 1.7 to 4


def test_autocast_does_not_widen_the_step_of_a_float64_head():
    model = SmallNet(act=nn.GELU).double()
    images, _, landmarks = batch()
    _, gradients = judged(twin(model), "middle", images, None, landmarks)
    pal = finite(model, "middle", model.head)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    pal(logits, landmarks).backward()
    assert gradient_error(model, gradients) < 1e-5


def test_a_sample_at_which_the_layer_is_zero_leaves_the_gradients_finite():
    """No step along v is a share of nothing."""
    model = SmallNet(act=nn.GELU, norm=lambda c: nn.GroupNorm(1, c))
    model.middle.register_forward_hook(lambda m, a, output: output * torch.tensor([0.0, 1, 1, 1])[:, None, None, None])
    images, _, landmarks = batch(dtype=torch.float32)
    pal = finite(model, "middle", model.head, attribution="grad")
    pal(model(images), landmarks).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert model.stem[0].weight.grad.any()


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_the_scale_of_the_gradient_does_not_matter(size):
    model = SmallNet(act=nn.GELU)
    with torch.no_grad():
        model.classifier.weight.mul_(size)
    images, _, landmarks = batch(dtype=torch.float32)
    _, gradients = judged(twin(model), "middle", images, None, landmarks)
    finite(model, "middle", model.head)(model(images), landmarks).backward()
    model.classifier.weight.grad *= size
    gradients["classifier.weight"] *= size
    assert gradient_error(model, gradients) < 1e-2


def test_a_relu_below_the_layer_does_not_count_as_a_kink():
    model = SmallNet().double()
    model.top = nn.Sequential(model.top[0], nn.GELU())
    images, _, landmarks = batch()
    _, gradients = judged(twin(model), "middle", images, None, landmarks)
    pal = finite(model, "middle", model.head)
    pal(model(images), landmarks).backward()
    assert gradient_error(model, gradients) < 1e-5


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (lambda m: m.classifier, "must return the logits|shapes"),
        (lambda m: Times(m, 2), "differs"),
        (lambda m: Times(m, float("nan")), "differs"),
    ],
)
def test_a_head_that_does_not_reproduce_the_models_logits_is_refused(head, words):
    model = SmallNet(act=nn.GELU)
    images, _, landmarks = batch(dtype=torch.float32)
    pal = finite(model, "middle", head(model))
    with pytest.raises((ValueError, RuntimeError), match=words):
        pal(model(images), landmarks)


class Times:
    def __init__(self, model, factor):
        self.model, self.factor = model, factor

    def __call__(self, f):
        return self.factor * self.model.head(f)


@pytest.mark.parametrize("options", [{"layer": ["stem", "middle"]}, {"reduction": "none"}])
def test_options_that_finite_differences_do_not_support_are_refused(options):
    model = SmallNet(act=nn.GELU)
    with pytest.raises(ValueError, match="finite_difference"):
        finite(model, options.pop("layer", "middle"), model.head, **options)


def test_a_batch_without_landmarks_has_zero_gradients():
    model = SmallNet(act=nn.GELU)
    images, _, landmarks = batch(dtype=torch.float32)
    loss = finite(model, "middle", model.head)(model(images), torch.full_like(landmarks, float("nan")))
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())

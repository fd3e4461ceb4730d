"""Autocast and GradScaler: the loss runs in float32, and float16 gradients do not underflow."""

from __future__ import annotations

import copy

import pytest
import torch
from support.compare import relative_error
from support.networks import SmallNet, Tokens, batch, by_hand, gradient_error, judged, twin
from torch import nn

import pal_fast
from pal_fast.attribution import scalar_scale


def setup(dtype):
    model = SmallNet(act=nn.GELU)
    images, labels, landmarks = batch(8, dtype=torch.float32)
    return model, images, labels, landmarks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inside", [True, False], ids=["loss inside autocast", "loss outside"])
def test_autocast_adds_no_error_beyond_the_rounding_of_activations(dtype, inside):
    model, images, labels, landmarks = setup(dtype)
    wanted, gradients = judged(twin(model), "middle", images, labels, landmarks)
    hand = copy.deepcopy(model)
    with torch.autocast("cpu", dtype):
        loss = by_hand(hand, images, labels, landmarks)
    loss.backward()
    rounding = gradient_error(hand, gradients)
    pal = pal_fast.PALLoss(model, "middle")
    with torch.autocast("cpu", dtype):
        logits = model(images)
        if inside:
            loss = nn.functional.cross_entropy(logits, labels) + pal(logits, landmarks)
    if not inside:
        loss = nn.functional.cross_entropy(logits.float(), labels) + pal(logits, landmarks)
    assert loss.dtype == torch.float32
    loss.backward()
    assert relative_error(loss, wanted) < 0.02
    # In float16 the scale of the attributed scalar changes the rounding: another sample of the same noise.
    noise = 1.1 * rounding + 0.01 if dtype == torch.bfloat16 else 2 * rounding + 0.02
    assert gradient_error(model, gradients) < noise


def below_the_classifier(model):
    """The model without its classifier, whose gradient alone grows as the inverse of the classifier's weights."""
    return nn.ModuleDict({name: part for name, part in model.named_children() if name != "classifier"})


def float16_step(shrink, set_up):
    """The rounding error of the gradients below the classifier, and the errors (of the loss, of those gradients) of
    each of two steps with GradScaler and the classifier's weights multiplied by `shrink`."""
    model, images, _, landmarks = set_up
    model = copy.deepcopy(model)
    with torch.no_grad():
        # Coarse enough for the shrunken weights to be exact in float16, whose spacing near zero is 2^-24.
        model.classifier.weight.mul_(2**11).round_().div_(2**11)
    wanted, gradients = judged(twin(model), "middle", images, None, landmarks)
    gradients = {n: g for n, g in gradients.items() if not n.startswith("classifier")}
    # The loss does not depend on the scale of the logits, so ordinary logits give the rounding error.
    hand = copy.deepcopy(model)
    with torch.autocast("cpu", torch.float16):
        by_hand(hand, images, None, landmarks).backward()
    rounding = gradient_error(below_the_classifier(hand), gradients)
    with torch.no_grad():
        model.classifier.weight.mul_(shrink)
    pal = pal_fast.PALLoss(model, "middle")
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    optimizer = torch.optim.SGD(below_the_classifier(model).parameters(), 0.0)
    steps = []
    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            logits = model(images)
        loss = pal(logits, landmarks)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        steps.append((relative_error(loss, wanted), gradient_error(below_the_classifier(model), gradients)))
        scaler.step(optimizer)
        scaler.update()
    return rounding, steps


@pytest.mark.parametrize("shrink", [1.0, 2**-13], ids=["ordinary logits", "gradients of 1e-7"])
def test_float16_with_grad_scaler_does_not_underflow(shrink):
    rounding, steps = float16_step(shrink, setup(torch.float16))
    for loss_error, error in steps:
        assert loss_error < 0.02
        assert error < 2 * rounding + 0.02


@pytest.mark.parametrize("act", [nn.GELU, nn.ReLU])
def test_float16_sums_over_a_large_batch_do_not_overflow(act):
    """BatchNorm's second derivative sums g over 32 * 16 * 16 positions in float16; no GradScaler could help there."""
    model = SmallNet(act=act)
    images, _, landmarks = batch(32, 32, dtype=torch.float32)
    _, gradients = judged(twin(model), "middle", images, None, landmarks)
    pal = pal_fast.PALLoss(model, "middle")
    with torch.autocast("cpu", torch.float16):
        logits = model(images)
    (pal(logits, landmarks) * 16).backward()
    assert gradient_error(model, {n: g * 16 for n, g in gradients.items()}) < 0.6  # NaN on overflow


def test_without_scaling_the_attributed_scalar_float16_fails(monkeypatch):
    set_up = setup(torch.float16)
    monkeypatch.setattr(scalar_scale.ScalarScale, "follow", lambda self, gradients, attributed: None)
    _, steps = float16_step(2**-13, set_up)
    assert not any(error < 1 for _, error in steps)  # NaN


def errors_above_a_float32_layer(second_order, shrink, cast):
    """The worst errors of the loss and of its gradients over two steps of a small transformer under autocast."""
    model = Tokens()
    images, _, landmarks = batch(8, dtype=torch.float32)
    with torch.no_grad():
        model.classifier.weight.mul_(2**11).round_().div_(2**11)
    wanted, gradients = judged(twin(model), "blocks.0", images, None, landmarks, view=Tokens.grid_of)
    with torch.no_grad():
        model.classifier.weight.mul_(shrink)
    outputs = []
    model.blocks[0].register_forward_hook(lambda m, a, out: outputs.append(out.dtype))
    head = model.head_after(0) if second_order == "finite_difference" else None
    pal = pal_fast.PALLoss(model, "blocks.0", second_order=second_order, head=head)
    errors = []
    for _ in range(2):
        model.zero_grad()
        with torch.autocast("cpu", torch.float16):
            logits = model(images)
        loss = pal(logits.float() if cast else logits, landmarks)
        (loss * 16).backward()
        model.classifier.weight.grad.copy_(gradients["classifier.weight"] * 16)  # grows as the inverse of its weights
        moved = gradient_error(model, {name: gradient * 16 for name, gradient in gradients.items()})
        errors.append((float(relative_error(loss, wanted)), float(moved)))
    assert outputs == [torch.float32] * 2
    return tuple(map(max, zip(*errors, strict=True)))


# The finite-difference step starts from the inverse of g, which float16 must be able to represent.
@pytest.mark.parametrize(("second_order", "shrink"), [("exact", 2**-13), ("finite_difference", 2**-3)])
@pytest.mark.parametrize("cast", [False, True], ids=["logits", "logits in float32"])
def test_float16_above_a_layer_whose_output_is_float32(second_order, shrink, cast):
    """The residual stream of a ViT under autocast: the terms added to it and their gradients are float16."""
    # Three draws: an attribution is occasionally nearly flat, and its inverse spread magnifies float16's rounding.
    found = [errors_above_a_float32_layer(second_order, shrink, cast) for _ in range(3)]
    of_losses, of_gradients = (sorted(errors) for errors in zip(*found, strict=True))
    assert of_losses[1] < 0.02, found
    assert of_gradients[1] < 0.2, found
    assert all(error < 1 for error in of_gradients), found  # NaN also fails


def test_a_float16_model_whose_logits_are_cast_to_float32_does_not_underflow():
    model, images, _, landmarks = setup(torch.float16)
    with torch.no_grad():
        model.classifier.weight.mul_(2**-13)
    pal = pal_fast.PALLoss(model.half(), "middle")
    (pal(model(images.half()).float(), landmarks) * 16).backward()
    assert all(p.grad.isfinite().all() for p in below_the_classifier(model).parameters())  # NaN without the scale


@pytest.mark.parametrize("value", [torch.inf, torch.nan, 0.0, 1e-30, 1e30])
def test_the_float16_scale_stays_in_its_range_and_recovers_from_any_gradient(generator, value):
    scale = scalar_scale.ScalarScale()
    ordinary = torch.randn(4, 3, 5, 5, generator=generator)
    scale.follow([ordinary])
    found = scale.value
    for _ in range(4):
        scale.follow([torch.full_like(ordinary, value)])
        assert 1 / scalar_scale.MOST <= scale.value <= scalar_scale.MOST
    for _ in range(2):
        scale.follow([ordinary * scale.value])
    assert scale.value == found


def ignored_labels(images):
    return torch.full((len(images),), -100)


def test_batches_with_only_ignored_labels_leave_the_float16_scale_unchanged():
    model, images, labels, landmarks = setup(torch.float16)
    pal = pal_fast.PALLoss(model, "middle", target="label")
    finite = []
    for given in (labels, ignored_labels(images), ignored_labels(images), labels):
        model.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = pal(model(images), landmarks, labels=given)
        (loss * 256).backward()
        finite.append(all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None))
    assert finite == [True] * 4


def test_an_empty_float16_batch_has_a_loss_of_0():
    model = SmallNet(norm=lambda c: nn.GroupNorm(1, c)).half()
    pal = pal_fast.PALLoss(model, "middle")
    assert pal(model(torch.zeros(0, 3, 16, 16).half()), torch.zeros(0, 5, 2)) == 0


def test_a_half_precision_model_adds_no_error_beyond_the_rounding_of_activations():
    model = SmallNet(act=nn.GELU).to(torch.bfloat16)
    images, labels, landmarks = batch(8, dtype=torch.float32)
    images = images.to(torch.bfloat16)
    wanted, gradients = judged(twin(model), "middle", images, labels, landmarks)
    hand = copy.deepcopy(model)
    by_hand(hand, images, labels, landmarks).backward()
    pal = pal_fast.PALLoss(model, "middle")
    logits = model(images)
    loss = pal(logits, landmarks)
    assert loss.dtype == torch.float32
    loss = loss + nn.functional.cross_entropy(logits.float(), labels)
    loss.backward()
    assert relative_error(loss, wanted) < 0.05
    assert gradient_error(model, gradients) < 1.1 * gradient_error(hand, gradients) + 0.01

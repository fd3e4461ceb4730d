"""Autocast and GradScaler: the loss runs in float32, and float16 gradients do not underflow."""

from __future__ import annotations

import copy

import pytest
import torch
from support.compare import relative_error
from support.networks import SmallNet, batch, gradient_error, judged, twin
from torch import nn

import pal_fast
from pal_fast import reference


def setup(dtype):
    model = SmallNet(act=nn.GELU)
    images, labels, landmarks = batch(8, dtype=torch.float32)
    return model, images, labels, landmarks


def by_hand(model, images, labels, landmarks):
    """The step under the present autocast with the loss in float32: what rounding the activations costs."""
    held = []
    handle = model.middle.register_forward_hook(lambda m, a, out: held.append(out))
    logits = model(images)
    handle.remove()
    (g,) = torch.autograd.grad(logits.sum(), held[0], create_graph=True)
    with torch.autocast("cpu", enabled=False):
        h = reference.landmark_heatmap(landmarks, (8, 8), image_size=(16, 16), sigma=1.0)
        return reference.pal_loss(held[0], g, h, channel_count=8) + nn.functional.cross_entropy(logits.float(), labels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inside", [True, False], ids=["loss inside autocast", "loss outside"])
def test_autocast_loses_no_more_than_the_rounding_of_activations(dtype, inside):
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
    assert gradient_error(model, gradients) < 1.1 * rounding + 0.01


@pytest.mark.parametrize("shrink", [1.0, 1e-4], ids=["ordinary logits", "gradients of 1e-7"])
def test_float16_with_grad_scaler_does_not_underflow(shrink):
    model, images, _, landmarks = setup(torch.float16)
    with torch.no_grad():
        model.classifier.weight.mul_(shrink)
    wanted, gradients = judged(twin(model), "middle", images, None, landmarks)
    # The last layer's own gradient grows as 1 / shrink; the others are what the scale must save.
    gradients = {n: g for n, g in gradients.items() if not n.startswith("classifier")}
    pal = pal_fast.PALLoss(model, "middle")
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    optimizer = torch.optim.SGD([p for n, p in model.named_parameters() if not n.startswith("classifier")], 0.0)
    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            logits = model(images)
        loss = pal(logits, landmarks)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        assert relative_error(loss, wanted) < 0.02
        rest = nn.ModuleDict({n: m for n, m in model.named_children() if n != "classifier"})
        assert gradient_error(rest, gradients) < 0.3  # by the rounding of activations; NaN without the scale
        scaler.step(optimizer)
        scaler.update()


def test_a_half_precision_model_loses_no_more_than_the_rounding_of_activations():
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

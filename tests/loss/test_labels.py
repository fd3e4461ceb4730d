"""A sample whose label is not a class contributes nothing, even if the model couples it with the others."""

from __future__ import annotations

import pytest
import torch
from support.networks import SmallNet, batch
from torch import nn

import pal_fast

IGNORED = torch.tensor([0, -100, 3, 5])


def step(model, **given):
    """The loss of a fresh copy's step, and its gradients."""
    images, landmarks, options = given.pop("images"), given.pop("landmarks"), given.pop("options", {})
    pal = pal_fast.PALLoss(model, "middle", target="label", **options)
    loss = pal(model(images), landmarks, **given)
    model.zero_grad()
    loss.sum().backward()
    pal.remove()
    return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_label_outside_the_classes_equals_a_sample_weight_of_zero(mode, reduction):
    model = SmallNet().double()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.train(mode == "train")
    images, _, landmarks = batch()
    given = {"images": images, "landmarks": landmarks, "labels": IGNORED, "options": {"reduction": reduction}}
    loss, gradients = step(model, **given)
    inside = (IGNORED >= 0) & (IGNORED < 5)
    wanted, wanted_gradients = step(model, **given, sample_weight=inside.double())
    assert inside.tolist() == [True, False, True, False]
    assert torch.equal(loss, wanted)
    assert all(map(torch.equal, gradients, wanted_gradients))
    zero = pal_fast.PALLoss(model, "middle", target="label", reduction="none")(model(images), landmarks, labels=IGNORED)
    assert zero[~inside].tolist() == [0, 0]
    assert (zero[inside] != 0).all()


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_ignored_samples_are_not_attributed_but_samples_of_weight_zero_are(mode):
    """The two differ only where samples are coupled: by a BatchNorm above the layer in train mode."""
    model = SmallNet(act=nn.SiLU).double()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.train(mode == "train")
    images, _, landmarks = batch()
    given = {"images": images, "landmarks": landmarks}
    inside = (IGNORED >= 0) & (IGNORED < 5)
    ignored, gradients = step(model, **given, labels=IGNORED)
    weighed, others = step(model, **given, labels=IGNORED.clamp(0, 4), sample_weight=inside.double())
    alike = torch.allclose(ignored, weighed) and all(map(torch.allclose, gradients, others))
    assert alike == (mode == "eval")

    def attributed(logits, labels):
        return (logits * nn.functional.one_hot(labels.clamp(0, 4), 5)).sum(1) * inside

    with pal_fast.PALLoss(model, "middle", target=attributed) as pal:
        wanted = pal(model(images), landmarks, labels=IGNORED, sample_weight=inside.double())
    torch.testing.assert_close(ignored, wanted.detach())


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_weights_of_the_other_samples_are_kept(backend, dtype):
    model = SmallNet().to(dtype)
    images, _, landmarks = batch(dtype=dtype)
    weight = torch.tensor([2.0, 3.0, 0.5, 1.0])
    given = {"images": images, "landmarks": landmarks, "labels": IGNORED, "options": {"backend": backend}}
    loss, gradients = step(model, **given, sample_weight=weight)
    wanted, wanted_gradients = step(model, **given, sample_weight=weight * torch.tensor([1.0, 0, 1, 0]))
    assert torch.equal(loss, wanted)
    assert all(map(torch.equal, gradients, wanted_gradients))


def test_the_error_for_a_single_logit_suggests_target_sum():
    model = SmallNet()
    model.classifier = nn.Linear(10, 1)
    images, _, landmarks = batch(dtype=torch.float32)
    pal = pal_fast.PALLoss(model, "middle", target="label")
    with pytest.raises(ValueError, match=r"a logit for each class, got logits of shape \(4, 1\): take target='sum'"):
        pal(model(images), landmarks, labels=torch.tensor([0, 1, 1, 0]))


def test_labels_on_another_device_than_the_logits_are_refused():
    images, labels, landmarks = batch(dtype=torch.float32)
    model = SmallNet()
    pal = pal_fast.PALLoss(model, "middle", target="label")
    with pytest.raises(ValueError, match="labels is on meta, but logits is on cpu: move it there first"):
        pal(model(images), landmarks, labels=labels.to("meta"))

"""Inspecting the model between its forward and the loss leaves the captured forward to the loss."""

from __future__ import annotations

import pytest
import torch
from support.networks import SmallNet, batch

import pal_fast

INSPECTIONS = {
    "attribute": lambda model, pal, images: pal_fast.attribute(model, "middle", images[:2]),
    "attribute another layer": lambda model, pal, images: pal_fast.attribute(model, "stem", images[:2]),
    "attribute in eval mode": lambda model, pal, images: (
        model.eval(),
        pal_fast.attribute(model, "middle", images[:2]),
        model.train(),
    ),
    "check": lambda model, pal, images: pal.check(images[:2]),
    "check of smaller images": lambda model, pal, images: pal.check(images[:2, :, :8, :12]),
    "check of another loss": lambda model, pal, images: pal_fast.PALLoss(model, "stem").check(images[:2]),
}


@pytest.mark.parametrize("look", INSPECTIONS)
def test_an_inspection_does_not_change_the_loss_or_its_gradients(look):
    model = SmallNet().double()
    images, _, landmarks = batch()
    pal = pal_fast.PALLoss(model, "middle")

    def gradients(inspect):
        logits = model(images)
        if inspect:
            INSPECTIONS[look](model, pal, images)
        loss = pal(logits, landmarks)
        return [loss, *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)]

    for value, wanted in zip(gradients(True), gradients(False), strict=True):
        assert (value is None and wanted is None) or torch.equal(value, wanted)


def test_an_inspection_does_not_count_as_a_forward():
    model = SmallNet()
    images, _, landmarks = batch(dtype=torch.float32)
    pal = pal_fast.PALLoss(model, "middle")
    logits = model(images)
    pal(logits, landmarks)
    pal_fast.attribute(model, "middle", images)
    pal.check(images)
    with pytest.raises(RuntimeError, match="has not run with gradients since this PALLoss was made or last called"):
        pal(logits, landmarks)

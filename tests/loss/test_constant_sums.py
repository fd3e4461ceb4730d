"""Logits whose sum is the same for every sample are refused: the gradient of that sum is rounding error alone."""

from __future__ import annotations

import pytest
import torch
from support.networks import SmallNet, batch
from torch import nn

import pal_fast

CONSTANT = {
    "percentages": lambda logits: 100 * logits.softmax(1),
    "without their mean": lambda logits: logits - logits.mean(1, keepdim=True),
    "of sum one, some negative": lambda logits: 100 * (logits - logits.mean(1, keepdim=True)) + 1 / 5,
    "normalised over the classes": nn.LayerNorm(5, elementwise_affine=False),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("how", CONSTANT)
def test_a_constant_sum_is_refused_and_the_error_gives_the_fix(how, samples, dtype):
    model = SmallNet().to(dtype)
    images, labels, landmarks = batch(samples, dtype=dtype)
    pal = pal_fast.PALLoss(model, "middle")
    with pytest.raises(ValueError, match=r"add up to the same number, .*target='label' or 'predicted'"):
        pal(CONSTANT[how](model(images)), landmarks)
    for target in ("label", "predicted"):
        pal = pal_fast.PALLoss(model, "middle", target=target)
        model.zero_grad()
        pal(CONSTANT[how](model(images)), landmarks, labels=labels).backward()
        assert model.stem[0].weight.grad.any()


@pytest.mark.parametrize("samples", [1, 4])
def test_a_sum_that_happens_to_be_constant_is_accepted(samples):
    """It always is for a single sample, and nearly so for logits that are almost their bias."""
    model = SmallNet()
    images, _, landmarks = batch(samples, dtype=torch.float32)
    with torch.no_grad():
        model.classifier.bias.add_(100)
        model.classifier.weight.mul_(1e-5)
    pal = pal_fast.PALLoss(model, "middle")
    pal(model(images), landmarks).backward()
    assert model.stem[0].weight.grad.any()

"""Transformers and ConvNeXts at 224x224 on the CPU: one step each, gradients equal to the judge's in float64."""

from __future__ import annotations

import warnings

import pytest
import torch
from support.backbones import Backbone, assert_one_step_equals_the_double_backward, build

import pal_fast

BACKBONES = [
    Backbone("torchvision", "convnext_tiny", "features.5", batch=1),
    Backbone("torchvision", "swin_t", "features.5"),
    Backbone("torchvision", "vit_b_16", "encoder.layers.encoder_layer_7", batch=1),
    Backbone("timm", "vit_small_patch16_224", "blocks.7"),
    Backbone("timm", "convnextv2_atto", "stages.2"),
]


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda b: f"{b.library} {b.name}")
def test_one_step_matches_the_double_backward(backbone):
    assert_one_step_equals_the_double_backward(backbone)


def test_check_reports_swin_v2():
    report = pal_fast.PALLoss(build("torchvision", "swin_v2_t"), "features.3").check(torch.randn(2, 3, 64, 64))
    assert "second derivative is not finite" in report.problems[0]
    assert "swin_v2" in report.problems[0]


def test_the_first_call_of_the_loss_reports_swin_v2():
    model = build("torchvision", "swin_v2_t")
    pal = pal_fast.PALLoss(model, "features.3")
    images, landmarks = torch.randn(2, 3, 64, 64), torch.rand(2, 5, 2) * 64
    with pytest.warns(UserWarning, match=r"'features\.3': the second derivative will not be finite.*swin_v2"):
        loss = pal(model(images), landmarks)
    loss.backward()
    assert any(not torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pal(model(images), landmarks)


def test_a_classifier_with_zero_weights_is_reported():
    model = build("torchvision", "vit_b_16")
    pal = pal_fast.PALLoss(model, "encoder.layers.encoder_layer_7")
    with pytest.warns(UserWarning, match="classifier's weights are all zero"):
        pal(model(torch.randn(1, 3, 224, 224)), torch.rand(1, 5, 2) * 224)

"""Convolutional backbones at 224x224 on the CPU: one step each, gradients equal to the judge's in float64."""

from __future__ import annotations

import pytest
from support.backbones import Backbone, assert_one_step_equals_the_double_backward

BACKBONES = [
    Backbone("torchvision", "resnet18", "layer3"),
    Backbone("torchvision", "resnet50", "layer3"),
    Backbone("torchvision", "vgg16", "features.22", batch=1),
    Backbone("torchvision", "densenet121", "features.denseblock3"),
    Backbone("torchvision", "efficientnet_b0", "features.5"),
    Backbone("torchvision", "mobilenet_v3_small", "features.8"),
    Backbone("timm", "resnet50", "layer3"),
]


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda b: f"{b.library} {b.name}")
def test_one_step_matches_the_double_backward(backbone):
    assert_one_step_equals_the_double_backward(backbone)

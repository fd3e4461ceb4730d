"""Real backbones at their real size on the CPU: one step each, gradients finite and equal to the judge's."""

from __future__ import annotations

import pytest
import torch
from support.compare import relative_error
from support.networks import gradient_error, judged, twin

import pal_fast
import pal_fast.nn
from pal_fast.layouts import find_layout

torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
timm = pytest.importorskip("timm", reason="timm is not installed")

#: library:name -> layer, side of the images in pixels.
BACKBONES = {
    "torchvision:resnet18": ("layer3", 64),
    "torchvision:resnet50": ("layer3", 64),
    "torchvision:vgg16": ("features.22", 64),
    "torchvision:densenet121": ("features.denseblock3", 64),
    "torchvision:convnext_tiny": ("features.5", 64),
    "torchvision:efficientnet_b0": ("features.5", 64),
    "torchvision:mobilenet_v3_small": ("features.8", 96),
    "torchvision:swin_t": ("features.5", 64),
    "torchvision:vit_b_16": ("encoder.layers.encoder_layer_7", 64),
    "timm:resnet50": ("layer3", 64),
    "timm:vit_small_patch16_224": ("blocks.7", 64),
    "timm:convnextv2_atto": ("stages.2", 64),
}


def build(name: str, size: int) -> torch.nn.Module:
    library, _, model = name.partition(":")
    if library == "timm":
        options = {"img_size": size} if "vit" in model else {}
        return timm.create_model(model, num_classes=7, **options)
    options = {"image_size": size} if "vit" in model else {}
    if model == "vgg16":
        options["dropout"] = 0.0
    network = torchvision.models.get_model(model, weights=None, num_classes=7, **options)
    if "vit" in model:  # its classifier starts at zero
        torch.nn.init.normal_(network.heads.head.weight, std=0.1)
    return network


def deterministic(model: torch.nn.Module) -> torch.nn.Module:
    """Train-mode normalisation, without the random layers that the judge would draw anew."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) or "StochasticDepth" in type(module).__name__:
            module.p = 0.0
    return model


@pytest.mark.parametrize("name", BACKBONES)
def test_one_step_equals_the_double_backward(name):
    layer, size = BACKBONES[name]
    model = deterministic(build(name, size))
    pal_fast.nn.replace_hardsigmoid(model)
    images = torch.randn(2, 3, size, size)
    labels, landmarks = torch.tensor([1, 4]), torch.rand(2, 5, 2) * size

    def view(f):
        return find_layout("auto", layer, tuple(f.shape), (size, size)).view(f)

    wanted, gradients = judged(twin(model), layer, images, labels, landmarks, view=view)
    model = model.double()
    pal = pal_fast.PALLoss(model, layer)
    logits = model(images.double())
    loss = torch.nn.functional.cross_entropy(logits, labels) + pal(logits, landmarks.double())
    loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    assert relative_error(loss, wanted) < 1e-9
    assert gradient_error(model, gradients) < 1e-7


def test_swin_v2_is_named_by_the_preflight():
    model = torchvision.models.swin_v2_t(weights=None, num_classes=7)
    report = pal_fast.PALLoss(model, "features.3").check(torch.randn(2, 3, 64, 64))
    assert "second derivative is not finite" in report.problems[0]
    assert "swin_v2" in report.problems[0]


def test_a_classifier_of_zeros_is_named():
    model = torchvision.models.vit_b_16(num_classes=7, image_size=64)
    pal = pal_fast.PALLoss(model, "encoder.layers.encoder_layer_7")
    with pytest.warns(UserWarning, match="classifier's weights are all zero"):
        pal(model(torch.randn(1, 3, 64, 64)), torch.rand(1, 5, 2) * 64)

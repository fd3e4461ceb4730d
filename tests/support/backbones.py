"""Real backbones at full size, and one training step of each against the float64 double backward."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import pal_fast
import pal_fast.nn
from pal_fast.capture.channel_axis import signs_of
from pal_fast.capture.layouts import find_layout
from support.compare import relative_error
from support.networks import gradient_error, judged, twin

SIDE = 224


class Backbone(NamedTuple):
    library: str
    name: str
    layer: str
    batch: int = 2  # 1 where a step in float64 takes long


def build(library: str, name: str) -> nn.Module:
    """The network with 7 classes, random weights and no random layer: the reference would draw other numbers."""
    module = pytest.importorskip(library, reason=f"{library} is not installed")
    if library == "timm":
        model: nn.Module = module.create_model(name, num_classes=7)
    else:
        model = module.models.get_model(name, weights=None, num_classes=7)
    for part in model.modules():
        if isinstance(part, nn.Dropout) or "StochasticDepth" in type(part).__name__:
            part.p = 0.0
    return model


def assert_one_step_equals_the_double_backward(backbone: Backbone) -> None:
    library, name, layer, batch = backbone
    model = build(library, name)
    pal_fast.nn.replace_hardsigmoid(model)
    if name == "vit_b_16":  # its classifier starts at zero
        nn.init.normal_(model.heads.head.weight, std=0.1)
    images = torch.randn(batch, 3, SIDE, SIDE, dtype=torch.float64)
    labels, landmarks = torch.tensor([1, 4])[:batch], torch.rand(batch, 5, 2, dtype=torch.float64) * SIDE

    def view(f: Tensor) -> Tensor:
        signs = signs_of(model, model.get_submodule(layer))
        return find_layout("auto", layer, tuple(f.shape), (SIDE, SIDE), signs).view(f)

    wanted, gradients = judged(twin(model), layer, images, labels, landmarks, view=view)
    model = model.double()
    pal = pal_fast.PALLoss(model, layer)
    logits = model(images)
    loss = nn.functional.cross_entropy(logits, labels) + pal(logits, landmarks)
    loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    assert relative_error(loss, wanted) < 1e-9
    assert gradient_error(model, gradients) < 1e-7

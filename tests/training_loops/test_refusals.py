"""Layers without a second derivative, or unsound ones, are rejected by name with a remedy; in-place ones reported."""

from __future__ import annotations

import warnings

import pytest
import torch
from support.compare import relative_error
from support.networks import SmallNet, batch, gradient_error, judged, twin
from torch import nn

import pal_fast
import pal_fast.nn


class WithGate(SmallNet):
    def __init__(self):
        super().__init__()
        self.gate = nn.Hardsigmoid()

    def head(self, x):
        x = self.top(x)
        return self.classifier(self.pool(x * self.gate(x)).flatten(1))

    def forward(self, images):
        return self.head(self.middle(self.stem(images)))


def test_hardsigmoid_is_refused_and_its_replacement_is_exact():
    model = WithGate().double()
    images, labels, landmarks = batch()
    pal = pal_fast.PALLoss(model, "middle")
    before = model(images)
    with pytest.raises(RuntimeError, match=r"Hardsigmoid .*pal_fast\.nn\.replace_hardsigmoid"):
        pal(before, landmarks)
    keys = list(model.state_dict())
    assert pal_fast.nn.replace_hardsigmoid(model) == ("gate",)
    assert list(model.state_dict()) == keys
    wanted, gradients = judged(twin(model), "middle", images, labels, landmarks)
    logits = model(images)
    torch.testing.assert_close(logits, before)
    (nn.functional.cross_entropy(logits, labels) + pal(logits, landmarks)).backward()
    assert gradient_error(model, gradients) < 1e-10
    assert wanted > 0


@pytest.mark.parametrize("name", ["deform_conv2d", "roi_align", "roi_pool"])
def test_torchvision_operators_without_a_second_derivative_are_refused_by_name(name):
    ops = pytest.importorskip("torchvision.ops", reason="torchvision is not installed")

    class Net(SmallNet):
        def head(self, x):
            if name == "deform_conv2d":
                x = ops.deform_conv2d(x, torch.zeros(4, 18, 8, 8), self.top[0].weight, padding=1)
            else:
                boxes = torch.tensor([[i, 0.0, 0.0, 7.0, 7.0] for i in range(4)])
                x = self.top(getattr(ops, name)(x, boxes, 4))
            return self.classifier(self.pool(x).flatten(1))

        def forward(self, images):
            return self.head(self.middle(self.stem(images)))

    model = Net()
    images, _, landmarks = batch(dtype=torch.float32)
    pal = pal_fast.PALLoss(model, "middle")
    with pytest.raises(RuntimeError, match=f"{name} lies between .*choose a layer above it"):
        pal(model(images), landmarks)


def test_data_parallel_is_refused_anywhere_in_the_model():
    for model in (nn.DataParallel(SmallNet()), nn.Sequential(nn.DataParallel(SmallNet()))):
        with pytest.raises(TypeError, match="DistributedDataParallel"):
            pal_fast.PALLoss(model, "middle")
    model = nn.Sequential(SmallNet())
    pal = pal_fast.PALLoss(model, "0.middle")
    model[0].classifier = nn.DataParallel(model[0].classifier)
    images, _, landmarks = batch(dtype=torch.float32)
    with pytest.raises(TypeError, match="DistributedDataParallel"):
        pal(model(images), landmarks)


def test_an_in_place_relu_after_the_layer_warns_once_and_the_overwritten_value_is_attributed():
    model = SmallNet(act=lambda: nn.ReLU(inplace=True)).double()
    images, _, landmarks = batch()
    wanted, gradients = judged(twin(model), "middle", images, None, landmarks)  # after the ReLU
    pal = pal_fast.PALLoss(model, "middle.1")
    with pytest.warns(UserWarning, match=r"layer 'middle\.1' is overwritten in place.*inplace=False"):
        loss = pal(model(images), landmarks)
    loss.backward()
    assert relative_error(loss, wanted) < 1e-12
    assert gradient_error(model, gradients) < 1e-10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pal(model(images), landmarks)


def test_a_layer_that_is_not_overwritten_does_not_warn():
    model = SmallNet(act=lambda: nn.ReLU(inplace=True))
    images, _, landmarks = batch(dtype=torch.float32)
    pal = pal_fast.PALLoss(model, "middle")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pal(model(images), landmarks)

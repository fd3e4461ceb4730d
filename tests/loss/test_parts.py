"""If only parts of a model are called, its forward never begins, and the layer's latest run is the one used."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from support.networks import SmallNet, batch
from torch import nn

import pal_fast


def in_parts(model, images):
    return model.head(model.middle(model.stem(images)))


def loss_on(model, layer="middle", **options):
    return pal_fast.PALLoss(model, layer, image_size=16, **options)


def gradients(model, loss):
    moved = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, moved, allow_unused=True)
    return [torch.zeros(()) if g is None else g for g in found]


@pytest.fixture
def model():
    return SmallNet(act=nn.SiLU)


@pytest.fixture
def data():
    images, _, landmarks = batch(dtype=torch.float32)
    return images, landmarks


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("attribution", ["grad_input", "activation"])
@pytest.mark.parametrize("layer", ["middle", ["stem", "middle"]])
def test_earlier_steps_without_the_loss_do_not_change_it(model, data, layer, attribution, whole, frozen):
    images, landmarks = data
    model.stem.requires_grad_(not frozen)
    pal = loss_on(model, layer, attribution=attribution)
    for _ in range(3):
        logits = model(images) if whole else in_parts(model, images)
        logits.square().mean().backward()
    got = pal(logits := in_parts(model, images), landmarks)
    wanted = loss_on(model, layer, attribution=attribution)(model(images), landmarks)
    assert logits.requires_grad
    assert got != 0
    torch.testing.assert_close(got, wanted)
    for one, other in zip(gradients(model, got), gradients(model, wanted), strict=True):
        torch.testing.assert_close(one, other)


class Repeating(nn.Module):
    """Runs its layer twice: the second time on the first output, or side by side, or with one output unused."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.stem, self.layer = nn.Conv2d(3, 4, 3, padding=1), nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.SiLU())
        self.classifier = nn.Linear(4, 5)
        self.pool = nn.Sequential(nn.Conv2d(4, 4, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def features(self, images):
        x = self.stem(images)
        first = self.layer(x)
        if self.how == "sequence":
            return self.layer(first)
        if self.how == "in place":
            return self.layer((first + 1).relu_())
        if self.how == "overwritten":
            kept = first + 1
            first.relu_()
            return self.layer(x) + kept
        second = self.layer(x + 1)
        return {"side by side": first + second, "first": first, "second": second}[self.how]

    def forward_head(self, x):
        return self.classifier(self.pool(x))

    def forward(self, images):
        return self.forward_head(self.features(images))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("attribution", ["grad_input", "grad", "activation"])
@pytest.mark.parametrize("how", ["sequence", "in place", "side by side", "overwritten"])
def test_logits_that_depend_on_two_runs_are_refused(data, how, attribution, frozen):
    images, landmarks = data
    model = Repeating(how)
    model.stem.requires_grad_(not frozen)
    model.layer.requires_grad_(not frozen)
    pal = loss_on(model, "layer", attribution=attribution)
    for _ in range(2):
        logits = model.forward_head(model.features(images))
        with pytest.raises(RuntimeError, match="layer 'layer' ran more than once on the way to these logits"):
            pal(logits, landmarks)


@pytest.mark.parametrize("attribution", ["grad_input", "activation"])
def test_the_latest_of_two_runs_is_used_if_the_logits_depend_on_it_alone(data, attribution):
    images, landmarks = data
    model = Repeating("second")
    pal = loss_on(model, "layer", attribution=attribution)
    got = pal(model.forward_head(model.features(images)), landmarks)
    wanted = pal(model.forward_head(model.layer(model.stem(images) + 1)), landmarks)
    torch.testing.assert_close(got, wanted)
    model.how = "first"
    with pytest.raises(RuntimeError, match="depend on an earlier run of layer 'layer' and not on its latest"):
        pal(model.forward_head(model.features(images)), landmarks)


@pytest.mark.parametrize("attribution", ["grad_input", "activation"])
def test_logits_of_an_earlier_forward_are_refused(model, data, attribution):
    images, landmarks = data
    pal = loss_on(model, attribution=attribution)
    first, _ = in_parts(model, images), in_parts(model, images)
    with pytest.raises(RuntimeError, match="call the loss before the layer runs again"):
        pal(first, landmarks)
    whole = model(images)
    model.middle(model.stem(images))
    with pytest.raises(RuntimeError, match="call the loss before the layer runs again"):
        pal(whole, landmarks)
    in_parts(model, images), in_parts(model, images)
    with pytest.raises(RuntimeError, match="the logits do not depend on the output of layer 'middle'"):
        pal(model.head(torch.randn(4, 8, 8, 8)), landmarks)


@pytest.mark.parametrize("attribution", ["grad_input", "activation"])
def test_logits_that_combine_two_forwards_and_those_of_an_earlier_one_are_refused(model, data, attribution):
    """Two images through one network: the loss would be that of the second alone."""
    images, landmarks = data
    pal = loss_on(model, attribution=attribution)
    wanted = pal(model(images), landmarks)
    for both in (lambda a, b: (a + b) / 2, lambda a, b: a - b):
        with pytest.raises(
            RuntimeError, match=r"ran more than once on the way to these logits.* both inputs as one batch"
        ):
            pal(both(model(images), model(images.flip(3))), landmarks)
    first, _ = model(images), model(images.flip(3))
    with pytest.raises(RuntimeError, match="call the loss before the layer runs again"):
        pal(first, landmarks)
    model(images.flip(3))  # a forward that has no loss
    torch.testing.assert_close(pal(model(images), landmarks), wanted)


def test_detached_logits_after_a_forward_without_a_loss_are_refused_as_detached(model, data):
    images, landmarks = data
    pal = loss_on(model)
    logits = [model(images).detach() for _ in range(2)]
    with pytest.raises(RuntimeError, match="logits carry no gradient"):
        pal(logits[1], landmarks)


def test_the_output_of_a_superseded_run_is_freed(model, data):
    images, _ = data
    pal = loss_on(model)
    outputs = []
    model.middle.register_forward_hook(lambda m, args, output: outputs.append(weakref.ref(output)))
    for _ in range(3):
        in_parts(model, images)
    gc.collect()
    assert [reference() is None for reference in outputs] == [True, True, False]
    pal.remove()
    assert outputs[2]() is None


def test_a_layer_that_runs_twice_in_a_forward_of_the_whole_model_is_refused(data):
    images, landmarks = data
    model = Repeating("second")
    pal = loss_on(model, "layer")
    model(images)
    with pytest.raises(RuntimeError, match="layer 'layer' ran 2 times in one forward"):
        pal(model(images), landmarks)


def test_finite_differences_re_run_the_head_when_parts_are_called(model, data):
    images, landmarks = data
    found = []
    for call in (model, lambda images: in_parts(model, images)):
        pal = loss_on(model, second_order="finite_difference", head=model.head)
        found.append(gradients(model, pal(call(images), landmarks)))
        pal.remove()
    assert any(gradient.any() for gradient in found[0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)

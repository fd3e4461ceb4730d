"""The loss's weight gradients, below and above the layer, equal those of the reference's double backward."""

from __future__ import annotations

import pytest
import torch
from support.compare import relative_error
from support.networks import SmallNet, batch, gradient_error, judged, twin
from torch import nn

import pal_fast
from pal_fast import reference


@pytest.mark.parametrize("layer", ["stem", "middle", "top", "middle.0"])
@pytest.mark.parametrize("backend", [None, "reference"])
def test_every_weight_gradient_equals_that_of_the_double_backward(layer, backend):
    model = SmallNet().double()
    images, labels, landmarks = batch()
    wanted, gradients = judged(twin(model), layer, images, labels, landmarks)
    pal = pal_fast.PALLoss(model, layer, backend=backend)
    logits = model(images)
    loss = nn.functional.cross_entropy(logits, labels) + pal(logits, landmarks)
    loss.backward()
    assert relative_error(loss, wanted) < 1e-12
    assert gradient_error(model, gradients) < 1e-10


def test_the_loss_alone_gives_gradients_below_and_above_the_layer():
    model = SmallNet().double()
    images, _, landmarks = batch()
    wanted, gradients = judged(twin(model), "middle", images, None, landmarks)
    pal = pal_fast.PALLoss(model, "middle")
    pal(model(images), landmarks).backward()
    assert model.stem[0].weight.grad.norm() > 0
    assert model.top[0].weight.grad.norm() > 0
    assert model.classifier.weight.grad.norm() > 0
    assert gradient_error(model, gradients) < 1e-10
    assert wanted < 1


def test_thirty_steps_lower_the_loss():
    model = SmallNet(act=nn.GELU)
    images, _, landmarks = batch(dtype=torch.float32)
    pal = pal_fast.PALLoss(model, "middle")
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = pal(model(images), landmarks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1, losses


@pytest.mark.parametrize("target", ["label", "predicted", "callable"])
def test_other_targets_attribute_one_scalar_per_sample(target):
    model = SmallNet().double()
    images, labels, landmarks = batch()
    judge = twin(model)

    def scalar(logits):
        chosen = logits.argmax(1) if target == "predicted" else labels
        picked = logits.gather(1, chosen[:, None])
        return picked.square().sum() if target == "callable" else picked.sum()

    _, gradients = judged(judge, "middle", images, None, landmarks, scalar=scalar)
    own = (lambda z, y: z.gather(1, y[:, None])[:, 0].square()) if target == "callable" else target
    pal = pal_fast.PALLoss(model, "middle", target=own)
    pal(model(images), landmarks, labels=labels).backward()
    assert gradient_error(model, gradients) < 1e-10


def test_several_layers_are_averaged():
    model = SmallNet().double()
    images, _, landmarks = batch()
    pals = [pal_fast.PALLoss(model, layer) for layer in ("stem", "top")]
    both = pal_fast.PALLoss(model, ["stem", model.top])
    logits = model(images)
    assert both.layers == ("stem", "top")
    wanted = sum(pal(logits, landmarks) for pal in pals) / 2
    torch.testing.assert_close(both(logits, landmarks), wanted)


def test_the_gradients_of_several_layers_are_averaged():
    model = SmallNet().double()
    images, _, landmarks = batch()
    (stem, stem_gradients), (top, top_gradients) = (
        judged(twin(model), layer, images, None, landmarks) for layer in ("stem", "top")
    )
    loss = pal_fast.PALLoss(model, ["stem", "top"])(model(images), landmarks)
    loss.backward()
    assert relative_error(loss, (stem + top) / 2) < 1e-12
    assert gradient_error(model, {n: (g + top_gradients[n]) / 2 for n, g in stem_gradients.items()}) < 1e-10


def test_weight_sample_weight_and_reduction():
    model = SmallNet().double()
    images, _, landmarks = batch()
    pal = pal_fast.PALLoss(model, "middle", weight=3.0, reduction="none")
    mean = pal_fast.PALLoss(model, "middle")
    logits = model(images)
    each = pal(logits, landmarks) / 3
    assert each.shape == (4,)
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5])
    wanted = (each * weight).sum() / weight.sum()
    logits = model(images)
    torch.testing.assert_close(mean(logits, landmarks, sample_weight=weight), wanted)


def test_a_batch_without_landmarks_has_zero_loss_and_zero_gradients():
    model = SmallNet()
    images, _, landmarks = batch(dtype=torch.float32)
    pal = pal_fast.PALLoss(model, "middle")
    loss = pal(model(images), torch.full_like(landmarks, float("nan")))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_a_heatmap_of_any_size_replaces_landmarks():
    model = SmallNet().double()
    images, _, landmarks = batch()
    heatmap = pal_fast.landmark_heatmap(landmarks, (16, 16), sigma=1.0)
    pal = pal_fast.PALLoss(model, "middle")
    loss = pal(model(images), heatmap=heatmap)
    model(images)
    small = nn.functional.interpolate(heatmap[:, None], (8, 8), mode="bilinear", antialias=True)[:, 0]
    assert relative_error(loss, pal(model(images), heatmap=small)) < 1e-12
    assert loss != 0


def test_regions_select_landmarks_of_the_68_point_scheme():
    model = SmallNet().double()
    images, _, _ = batch()
    landmarks = torch.rand(4, 68, 2, dtype=torch.float64) * 16
    eyes = torch.zeros(4, 68, dtype=torch.bool)
    eyes[:, 36:48] = True
    with pal_fast.PALLoss(model, "middle", regions="eyes") as pal:
        got = pal(model(images), landmarks)
    with pal_fast.PALLoss(model, "middle") as pal:
        wanted = pal(model(images), landmarks, visible=eyes)
    torch.testing.assert_close(got, wanted)
    with pal_fast.PALLoss(model, "middle", regions={"eyes": 2.0, "jaw": 0}) as pal:
        torch.testing.assert_close(pal(model(images), landmarks), wanted)


def test_the_image_size_is_read_from_the_models_input_or_given():
    model = SmallNet().double()
    images, _, landmarks = batch()
    with pal_fast.PALLoss(model, "middle") as pal:
        read = pal(model(images), landmarks)
    with pal_fast.PALLoss(model, "middle", image_size=(32, 32)) as pal:
        given = pal(model(images), landmarks * 2 + 0.5)
    torch.testing.assert_close(read, given)


def test_the_head_gets_gradients_when_the_layer_and_all_below_are_frozen():
    model = SmallNet().double()
    model.stem.requires_grad_(False)
    model.middle.requires_grad_(False)
    images, _, landmarks = batch()
    pal = pal_fast.PALLoss(model, "middle")
    pal(model(images), landmarks).backward()
    assert model.stem[0].weight.grad is None
    assert model.top[0].weight.grad.norm() > 0


def test_a_frozen_layer_may_be_overwritten_in_place():
    model = SmallNet(act=lambda: nn.ReLU(inplace=True)).double()
    images, labels, landmarks = batch()
    wanted, gradients = judged(twin(model), "middle", images, labels, landmarks)  # after the ReLU
    model.stem.requires_grad_(False)
    model.middle.requires_grad_(False)
    pal = pal_fast.PALLoss(model, "middle.1")
    with pytest.warns(UserWarning, match=r"layer 'middle\.1' is overwritten in place"):
        loss = nn.functional.cross_entropy(logits := model(images), labels) + pal(logits, landmarks)
    loss.backward()
    assert relative_error(loss, wanted) < 1e-12
    moved = {n: g if n.startswith(("top", "classifier")) else torch.zeros_like(g) for n, g in gradients.items()}
    assert gradient_error(model, moved) < 1e-10


def test_attributions_of_a_model_in_eval_mode_match_the_reference():
    model = SmallNet().double().eval()
    images, _, _ = batch()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    maps, logits = pal_fast.attribute(model, "middle", images)
    f = model.middle(model.stem(images)).detach().requires_grad_()
    (g,) = torch.autograd.grad(model.head(f).sum(), f)
    torch.testing.assert_close(maps, reference.attribution(f.detach(), g, "grad_input", True).mean(1))
    torch.testing.assert_close(logits, model(images))
    assert not model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

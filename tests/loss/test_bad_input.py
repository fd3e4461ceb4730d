"""Every invalid call of the loss raises a one-sentence error that names the argument and what is wanted."""

from __future__ import annotations

import pytest
import torch
from support.networks import SmallNet, batch
from torch import nn

import pal_fast
from pal_fast.attribution import targets


def loss_logits_and_landmarks(model, options=None):
    images, _, landmarks = batch(dtype=torch.float32)
    pal = pal_fast.PALLoss(model, "middle", **(options or {}))
    return pal, model(images), landmarks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["softmax", "softmax of something", "log of nothing"])
@pytest.mark.parametrize("samples", [1, 4])
def test_softmax_outputs_are_refused(model, how, samples, dtype):
    images, _, landmarks = batch(samples, dtype=torch.float32)
    pal = pal_fast.PALLoss(model, "middle")
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        probabilities = model(images).to(dtype).softmax(1, dtype)
    if how == "softmax of something":
        probabilities = probabilities * 1.0
    if how == "log of nothing":
        probabilities = probabilities + 0.0
    with pytest.raises(ValueError, match="before the softmax"):
        pal(probabilities, landmarks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["probabilities", "log-probabilities"])
def test_logits_that_are_normalised_by_chance_are_not_refused(model, kind, dtype):
    """With tiny weights the logits are almost the bias, which may happen to be normalised without a softmax."""
    images, _, landmarks = batch(dtype=torch.float32)
    with torch.no_grad():
        bias = torch.rand(5).softmax(0)
        model.classifier.bias.copy_(bias if kind == "probabilities" else bias.log())
        model.classifier.weight.mul_(1e-4)
    pal = pal_fast.PALLoss(model, "middle")
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits = model(images)
    assert logits.dtype == dtype
    assert targets.normalised_by_values(logits) is not None
    assert pal(logits, landmarks).isfinite()


@pytest.mark.parametrize("target", ["sum", "label", "predicted"])
@pytest.mark.parametrize("how", ["log_softmax", "log of the softmax"])
def test_log_softmax_outputs_are_refused(model, how, target):
    pal, logits, landmarks = loss_logits_and_landmarks(model, {"target": target})
    logs = logits.log_softmax(1) if how == "log_softmax" else logits.softmax(1).log()
    with pytest.raises(ValueError, match="before the log_softmax"):
        pal(logs, landmarks, labels=torch.zeros(4, dtype=torch.int64))
    logits = model(torch.randn(4, 3, 16, 16))
    pal(logits - logits.detach().amax(1, keepdim=True), landmarks, labels=torch.zeros(4, dtype=torch.int64))


def test_a_call_with_logits_that_are_refused_takes_the_forward(model):
    pal, logits, landmarks = loss_logits_and_landmarks(model)
    with pytest.raises(TypeError, match="logits must be floating point"):
        pal(logits.argmax(1), landmarks)
    with pytest.raises(RuntimeError, match=r"made or last called \(a call that raised counts\)"):
        pal(logits, landmarks)


def test_a_log_softmax_is_refused_in_every_call(model):
    pal, logits, landmarks = loss_logits_and_landmarks(model)
    pal(logits, landmarks)
    with pytest.raises(ValueError, match="before the log_softmax"):
        pal(model(torch.randn(4, 3, 16, 16)).log_softmax(1), landmarks)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda z: z.detach(), RuntimeError, "no gradient"),
        (lambda z: z.tolist(), TypeError, "logits must be a tensor"),
        (lambda z: {"expr": z, "va": z}, TypeError, "got dict with 'expr', 'va'; pass the one with the logits"),
        (lambda z: (z, z), TypeError, "got tuple of 2; pass the item with the logits"),
        (
            lambda z: torch.zeros(4, 68, 2),
            RuntimeError,
            r"\(4, 68, 2\), that of landmarks: the order is \(logits, landm",
        ),
        (lambda z: torch.zeros(4, 3, 16, 16), RuntimeError, "that of images: pass what the model returns for them"),
        (lambda z: z.argmax(1), TypeError, "floating point"),
        (lambda z: z.sum(), ValueError, "scalar"),
        (lambda z: z[:2], ValueError, "2 samples"),
    ],
)
def test_invalid_logits_are_refused(model, change, error, words):
    pal, logits, landmarks = loss_logits_and_landmarks(model)
    with pytest.raises(error, match=words):
        pal(change(logits), landmarks[:2] if words == "2 samples" else landmarks)


def test_the_error_for_an_output_object_suggests_its_logits(model):
    class Output:
        logits = torch.zeros(1)

    pal, _, landmarks = loss_logits_and_landmarks(model)
    with pytest.raises(TypeError, match=r"pass its \.logits"):
        pal(Output(), landmarks)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, ValueError, "neither"),
        ({"landmarks": torch.zeros(4, 5)}, ValueError, "landmarks"),
        ({"landmarks": torch.zeros(3, 5, 2)}, ValueError, "3 samples"),
        ({"landmarks": [[1, 2]]}, TypeError, "landmarks"),
        ({"heatmap": torch.zeros(4, 8)}, ValueError, "heatmap"),
        ({"heatmap": torch.zeros(2, 8, 8)}, ValueError, "heatmap"),
        ({"heatmap": torch.zeros(4, 8, 8), "landmarks": torch.zeros(4, 5, 2)}, ValueError, "both"),
        ({"heatmap": torch.zeros(4, 8, 8), "visible": torch.ones(4, 5, dtype=torch.bool)}, ValueError, "visible"),
        ({"landmarks": torch.zeros(4, 5, 2), "visible": torch.ones(4, 5)}, TypeError, "visible"),
        ({"landmarks": torch.zeros(4, 5, 2), "sample_weight": torch.ones(3)}, ValueError, "sample_weight"),
        ({"heatmap": torch.zeros(4, 8, 8), "sample_weight": torch.full((4,), torch.inf)}, ValueError, "sample_weight"),
    ],
)
def test_invalid_call_arguments_are_refused_before_any_computation(
    model, arguments, error, words, computation_forbidden
):
    pal, logits, _ = loss_logits_and_landmarks(model)
    with pytest.raises(error, match=words):
        pal(logits, **arguments)


def test_missing_labels_and_targets_of_a_wrong_shape_are_refused(model):
    pal, logits, landmarks = loss_logits_and_landmarks(model, {"target": "label"})
    with pytest.raises(ValueError, match="labels are needed"):
        pal(logits, landmarks)
    pal, logits, landmarks = loss_logits_and_landmarks(model, {"target": "label"})
    with pytest.raises(ValueError, match="labels must be a tensor of integers"):
        pal(logits, landmarks, labels=torch.zeros(4))
    pal, logits, landmarks = loss_logits_and_landmarks(model, {"target": lambda z, y: z})
    with pytest.raises(ValueError, match="one scalar per sample"):
        pal(logits, landmarks)


def test_the_error_for_float_or_one_hot_labels_gives_the_fix(model):
    pal, logits, landmarks = loss_logits_and_landmarks(model, {"target": "label"})
    with pytest.raises(ValueError, match=r"integers of shape \(4,\), got .*torch\.float32: pass labels\.long\(\)"):
        pal(logits, landmarks, labels=torch.zeros(4))
    for dtype in (torch.float32, torch.int64, torch.bool):  # mixed, one-hot, multi-label
        labels = torch.eye(5)[:4].to(dtype)
        pal, logits, landmarks = loss_logits_and_landmarks(model, {"target": "label"})
        way_out = r"target=lambda logits, labels: \(logits \* labels\)\.sum\(1\)"
        with pytest.raises(ValueError, match=way_out):
            pal(logits, landmarks, labels=labels)
    images, _, landmarks = batch(dtype=torch.float32)
    with pal_fast.PALLoss(model, "middle", target="label") as pal:
        wanted = pal(model(images), landmarks, labels=torch.arange(4))
    pal = pal_fast.PALLoss(model, "middle", target=lambda logits, labels: (logits * labels).sum(1))
    torch.testing.assert_close(pal(model(images), landmarks, labels=torch.eye(5)[:4]), wanted)


def test_regions_need_68_landmarks(model):
    pal, logits, landmarks = loss_logits_and_landmarks(model, {"regions": "eyes"})
    with pytest.raises(ValueError, match="68-point scheme, but landmarks hold 5"):
        pal(logits, landmarks)


def test_logits_that_do_not_depend_on_the_layer_are_refused(model):
    pal, _, landmarks = loss_logits_and_landmarks(model)
    with pytest.raises(RuntimeError, match="do not depend on the output of layer 'middle'"):
        pal(torch.randn(4, 5, requires_grad=True) * 2, landmarks)


def test_a_target_that_detaches_the_logits_is_refused(model):
    pal, logits, landmarks = loss_logits_and_landmarks(model, {"target": lambda logits, labels: logits.detach().sum(1)})
    with pytest.raises(ValueError, match="target must return a function of the logits, got a tensor without"):
        pal(logits, landmarks)


def test_a_second_loss_call_on_the_same_forward_is_refused(model):
    pal, logits, landmarks = loss_logits_and_landmarks(model)
    pal(logits, landmarks)
    with pytest.raises(RuntimeError, match="since this PALLoss was made or last called"):
        pal(logits, landmarks)


def test_a_layer_that_does_not_run_in_the_forward_is_refused():
    class Skipping(SmallNet):
        def forward(self, images):
            return self.classifier(self.pool(self.top(torch.zeros(4, 8, 8, 8) + images.mean())).flatten(1))

    pal, logits, landmarks = loss_logits_and_landmarks(Skipping())
    with pytest.raises(RuntimeError, match="layer 'middle' has not run"):
        pal(logits, landmarks)


def test_a_layer_that_runs_twice_in_a_forward_is_refused():
    class Twice(SmallNet):
        def forward(self, images):
            x = self.middle(self.stem(images))
            self.middle(self.stem(images))
            return self.head(x)

    pal, logits, landmarks = loss_logits_and_landmarks(Twice())
    with pytest.raises(RuntimeError, match="ran 2 times"):
        pal(logits, landmarks)


@pytest.mark.parametrize("options", [{"channel_count": 9}, {"backend": "cuda"}])
def test_options_that_do_not_fit_the_layer_are_refused_before_any_computation(model, options, computation_forbidden):
    pal, logits, landmarks = loss_logits_and_landmarks(model, options)
    with pytest.raises((ValueError, RuntimeError), match=next(iter(options))):
        pal(logits, landmarks)


def test_a_layer_output_that_is_not_a_feature_map_is_refused(model, computation_forbidden):
    images, _, landmarks = batch(dtype=torch.float32)
    pal = pal_fast.PALLoss(model, "classifier")
    with pytest.raises(ValueError, match="must have shape"):
        pal(model(images), landmarks)


def test_a_model_input_that_is_not_an_image_requires_image_size():
    model = nn.Sequential(nn.Unflatten(1, (3, 4, 4)), nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(64, 3))
    x = torch.randn(2, 48)
    pal = pal_fast.PALLoss(model, "1")
    with pytest.raises(ValueError, match="image_size"):
        pal(model(x), torch.rand(2, 5, 2))
    with pal_fast.PALLoss(model, "1", image_size=4) as sized:
        sized(model(x), torch.rand(2, 5, 2) * 4).backward()


def test_a_scripted_layer_is_refused_but_scripted_modules_around_it_are_not(model):
    model.stem, model.top = torch.jit.script(model.stem), torch.jit.script(model.top)
    pal, logits, landmarks = loss_logits_and_landmarks(model)
    assert pal(logits, landmarks).isfinite()
    pal.remove()
    model.middle = torch.jit.script(model.middle)
    with pytest.raises(TypeError, match=r"layer 'middle' is scripted, .*not, or take the model as it was before"):
        pal_fast.PALLoss(model, "middle")


def test_the_error_for_logits_per_clip_over_a_layer_run_per_frame_gives_the_fix(model):
    images, _, landmarks = batch(6, dtype=torch.float32)
    pal = pal_fast.PALLoss(model, "middle")
    clips = model(images).view(2, 3, 5).mean(1)
    with pytest.raises(ValueError, match=r"logits hold 2 samples, .* ran on 6: .*logits\.repeat_interleave\(3, 0\)"):
        pal(clips, landmarks)
    wanted = pal(model(images), landmarks)  # the clips' S is a third of the frames'; the loss ignores its scale
    clips = model(images).view(2, 3, 5).mean(1)
    torch.testing.assert_close(pal(clips.repeat_interleave(3, 0), landmarks), wanted)
    with pytest.raises(ValueError, match=r"logits hold 4 samples, but layer 'middle' ran on 6$"):
        pal(model(images)[:4], landmarks)


def test_a_sample_weight_that_requires_grad_is_refused(model):
    pal, logits, landmarks = loss_logits_and_landmarks(model)
    weight = torch.ones(4, requires_grad=True)
    with pytest.raises(ValueError, match=r"sample_weight must not require a gradient, .*detach it, .*reduction='none'"):
        pal(logits, landmarks, sample_weight=weight)
    assert pal(model(batch(dtype=torch.float32)[0]), landmarks, sample_weight=weight.detach()).isfinite()

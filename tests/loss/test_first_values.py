"""The first call checks its values once and warns, at the user's line, about any that make the loss useless."""

from __future__ import annotations

import linecache
import warnings

import pytest
import torch
from support.networks import SmallNet, batch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import pal_fast


def warnings_of(model, landmarks=None, layer="middle", images=None, options=None, calls=1, **given):
    """The texts of the warnings of `calls` steps; each warning must point at the line of the call."""
    images = batch(dtype=torch.float32)[0] if images is None else images
    pal = pal_fast.PALLoss(model, layer, **(options or {}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(calls):
            pal(model(images), landmarks, **given)
    pal.remove()
    for warning in caught:
        assert warning.filename == __file__
        assert "pal(model(images), landmarks, **given)" in linecache.getline(__file__, warning.lineno)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("least", [0.0, -1.0])
def test_normalised_landmarks_raise_a_warning_in_the_first_call_only(model, least):
    landmarks = least + (1 - least) * torch.rand(4, 5, 2)
    (text,) = warnings_of(model, landmarks, calls=2)
    assert "all landmarks of every annotated sample lie within 3 pixels of the image's corner" in text
    assert "16 x 16 (height x width) here; multiply normalised ones by (width, height)" in text
    landmarks[0, 0] = torch.nan  # a missing point is no evidence
    landmarks[1] = torch.nan
    landmarks[2, 1] = 1.01  # a detector may put a point beside the image
    assert len(warnings_of(model, landmarks)) == 1


def test_one_sample_in_pixels_shows_that_the_batch_is_not_normalised(model):
    landmarks = torch.rand(4, 5, 2)
    landmarks[0, 0] = 12.0
    assert warnings_of(model, landmarks) == []
    visible = torch.ones(4, 5, dtype=torch.bool)
    visible[0, 0] = False
    assert len(warnings_of(model, landmarks, visible=visible)) == 1
    landmarks = torch.full((4, 5, 2), 9.0) + torch.rand(4, 5, 2)  # close together, in the middle
    assert warnings_of(model, landmarks) == []


def test_samples_whose_landmarks_all_coincide_raise_a_warning(model):
    landmarks = batch(dtype=torch.float32)[2]
    landmarks[1] = 0.0
    landmarks[2] = torch.nan
    (text,) = warnings_of(model, landmarks, calls=2)
    assert text.startswith("the landmarks of 1 of 3 annotated samples of this batch lie in one point each")
    assert "give NaN for these" in text
    assert warnings_of(model, landmarks[:, :1]) == []  # one landmark in all
    (text,) = warnings_of(model, torch.zeros(4, 5, 2))
    assert text.startswith("the landmarks of 4 of 4 annotated samples")


@pytest.mark.parametrize("x", [-2.5, 17.5])
def test_landmarks_whose_gaussians_reach_the_image_raise_no_warning(model, x):
    landmarks = torch.stack([torch.full((4, 5), x), torch.rand(4, 5) * 8 + 4], -1)
    assert warnings_of(model, landmarks) == []


@pytest.mark.parametrize("offset", [(500.0, 500.0), (-500.0, 0.0), (0.0, 40.0)])
def test_landmarks_outside_the_image_raise_a_warning(model, offset):
    landmarks = batch(dtype=torch.float32)[2] + torch.tensor(offset)
    (text,) = warnings_of(model, landmarks)
    assert "no landmark of this batch lies in the image or near it (x from" in text
    landmarks[2:] -= torch.tensor(offset)
    landmarks[3, 2] = 17.0  # beside the frame, within three sigmas: its tail is inside
    assert warnings_of(model, landmarks) == []
    landmarks[3, 3] = 700.0
    (text,) = warnings_of(model, landmarks)
    assert text.startswith("only 9 of the 20 landmarks of this batch lie in the image or near it")
    assert "give NaN for those that are cropped away" in text
    landmarks[:2] = torch.nan
    assert warnings_of(model, landmarks) == []


def upright_faces(count, generator):
    """(count, 68, 2), the mouth below the eyes."""
    points = torch.rand(count, 68, 2, generator=generator) * 4 + 6
    points[:, 36:48, 1] -= 5
    points[:, 48:, 1] += 5
    return points


def test_exchanged_coordinates_raise_a_warning(model, generator):
    landmarks = upright_faces(4, generator)
    images = batch(4, dtype=torch.float32)[0]
    assert warnings_of(model, landmarks, images=images) == []
    (text,) = warnings_of(model, landmarks.flip(-1), images=images)
    assert text.startswith("in 4 of 4 faces of this batch the mouth (landmarks 48-67) does not lie below the eyes")
    assert "landmarks[..., [1, 0]] exchanges x and y" in text
    landmarks[:2] = landmarks[:2].flip(-1)
    assert warnings_of(model, landmarks, images=images) == [], "half of the faces may lie"
    landmarks[2:] = torch.nan
    assert warnings_of(model, landmarks, images=images) == [], "too few faces to tell"
    assert warnings_of(model, upright_faces(4, generator).flip(-1)[:, :67], images=images) == [], "another scheme"


def test_a_sigma_that_looks_like_a_share_of_the_image_raises_a_warning(model):
    images, _, landmarks = batch(size=32, dtype=torch.float32)
    (text,) = warnings_of(model, landmarks, images=images, options={"sigma": 1 / 16}, calls=2)
    assert text.startswith("sigma=0.0625 is in pixels of the model's input image, 32 x 32 here")
    assert text.endswith("the default, 1/16 of the image's longer side, is 2")
    for sigma in (None, 0.5, 1.0):
        assert warnings_of(model, landmarks, images=images, options={"sigma": sigma}) == []


@pytest.mark.parametrize("target", ["sum", "predicted"])
def test_labels_that_have_no_effect_raise_a_warning(model, target):
    images, labels, landmarks = batch(dtype=torch.float32)
    (text,) = warnings_of(model, landmarks, images=images, options={"target": target}, calls=2, labels=labels)
    assert text.startswith(f"labels have no effect with target='{target}': pass target='label'")
    assert warnings_of(model, landmarks, images=images, options={"target": "label"}, labels=labels) == []
    by_hand = {"target": lambda logits, given: logits.gather(1, given[:, None])[:, 0]}
    assert warnings_of(model, landmarks, images=images, options=by_hand, labels=labels) == []


def test_landmarks_in_pixels_and_heatmaps_raise_no_warning(model):
    assert warnings_of(model, batch(dtype=torch.float32)[2]) == []
    assert warnings_of(model, heatmap=torch.rand(4, 8, 8)) == []
    assert warnings_of(model, batch(dtype=torch.float32)[2], options={"attribution": "activation"}) == []


@pytest.mark.parametrize("missing", ["NaN", "not visible"])
def test_only_the_first_batch_with_a_landmark_is_checked(model, missing):
    """Batches without any landmark postpone the check to the first batch that has one."""
    images, normalised = batch(dtype=torch.float32)[0], torch.rand(4, 5, 2)
    none = torch.full((4, 5, 2), torch.nan) if missing == "NaN" else normalised
    seen = torch.zeros(4, 5, dtype=torch.bool)
    pal = pal_fast.PALLoss(model, ["middle", "pool"])
    texts = []
    for landmarks, visible in [(none, seen), (none, seen), (normalised, ~seen), (normalised, ~seen)]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pal(model(images), landmarks, visible=visible)
        texts.append([str(warning.message) for warning in caught])
    assert [len(said) for said in texts] == [0, 0, 1, 0]
    assert "lie within 3 pixels of the image's corner" in texts[2][0]


def test_a_flat_loss_raises_a_warning_in_the_first_batch_with_a_landmark(model):
    images, _, landmarks = batch(dtype=torch.float32)[:3]
    pal = pal_fast.PALLoss(model, "pool")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pal(model(images), torch.full_like(landmarks, torch.nan))
    with pytest.warns(pal_fast.warn.FlatLossWarning, match="'pool'"):
        pal(model(images), landmarks)


def test_a_batch_without_a_valid_sample_raises_no_warning(model):
    landmarks = batch(dtype=torch.float32)[2]
    assert warnings_of(model, torch.full((4, 5, 2), torch.nan)) == []
    assert warnings_of(model, landmarks, visible=torch.zeros(4, 5, dtype=torch.bool)) == []
    assert warnings_of(model, landmarks, sample_weight=torch.zeros(4)) == []
    assert (
        warnings_of(
            model, torch.empty(0, 5, 2), images=torch.empty(0, 3, 16, 16), options={"attribution": "activation"}
        )
        == []
    )


@pytest.mark.parametrize("score", ["pearson", "cross_correlation"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_loss_that_is_flat_in_every_sample_raises_a_warning(model, score, reduction):
    landmarks, options = batch(dtype=torch.float32)[2], {"score": score, "reduction": reduction}
    (text,) = warnings_of(model, landmarks, "top", options={"attribution": "grad", **options})
    assert text.startswith("the loss at layer 'top' is 0 for every sample and has no effect: in each sample")
    (text,) = warnings_of(model, landmarks, "pool", options=options)
    assert text.startswith(
        "the loss at layer 'pool' is 0 for every sample and has no effect: its map has a single cell"
    )
    (text,) = warnings_of(model, landmarks, ["middle", "pool"], options=options)
    assert "'pool'" in text
    if score == "pearson":
        (text,) = warnings_of(model, heatmap=torch.ones(4, 8, 8), options=options)
        assert "the prior is constant" in text


def test_the_warning_names_labels_that_are_all_outside_the_classes_as_the_cause(model):
    landmarks = batch(dtype=torch.float32)[2]
    (text,) = warnings_of(model, landmarks, options={"target": "label"}, labels=torch.tensor([5, 6, 7, -1]))
    assert "no label of this batch is one of the classes 0 to 4 (the labels go from -1 to 7)" in text
    assert warnings_of(model, landmarks, options={"target": "label"}, labels=torch.tensor([5, 0, 7, -1])) == []


def test_the_warning_names_sample_weights_that_cancel_as_the_cause(model):
    landmarks = batch(dtype=torch.float32)[2]
    weight = torch.tensor([1.0, -1.0, 1.0, -1.0])
    (text,) = warnings_of(model, landmarks, sample_weight=weight)
    assert text.startswith("sample_weight adds up to 0 over the samples of this batch that count ([1.0, -1.0, 1.0, -1")
    landmarks[3] = torch.nan
    assert warnings_of(model, landmarks, sample_weight=weight) == []
    (text,) = warnings_of(model, landmarks, sample_weight=torch.tensor([1, -2, 1, 5]))
    assert "([1.0, -2.0, 1.0, 0.0])" in text
    assert warnings_of(model, landmarks, sample_weight=weight, options={"reduction": "sum"}) == []
    (text,) = warnings_of(model, landmarks, "pool", sample_weight=weight, options={"reduction": "sum"})
    assert "single cell" in text


def test_the_other_warnings_point_at_the_same_line(model):
    landmarks = batch(dtype=torch.float32)[2]
    nn.init.zeros_(model.classifier.weight)
    (text,) = warnings_of(model, landmarks)
    assert "zero everywhere" in text
    (text,) = warnings_of(SmallNet(act=lambda: nn.ReLU(inplace=True)), landmarks, "middle.1")
    assert "overwritten in place" in text


@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_meta_and_fake_tensors_are_not_checked(kind):
    """As in an estimate of a step's memory."""
    mode = FakeTensorMode() if kind == "fake" else torch.device("meta")
    with mode:
        model = SmallNet()
        pal = pal_fast.PALLoss(model, "middle", target="label")
        for weight in (None, torch.ones(4)):
            logits = model(torch.zeros(4, 3, 16, 16))
            labels, landmarks = torch.zeros(4, dtype=torch.int64), torch.zeros(4, 5, 2)
            loss = pal(logits, landmarks, labels=labels, sample_weight=weight)
            loss.backward()
    assert loss.shape == ()
    assert model.stem[0].weight.grad.shape == model.stem[0].weight.shape

"""Bad input raises an error that names the argument, what was given and what is wanted."""

from __future__ import annotations

import re

import pytest
import torch

import pal_fast

F = torch.rand(2, 4, 5, 5)
H = torch.rand(2, 5, 5)
POINTS = torch.rand(2, 68, 2)
NAN = float("nan")

LOSS = {
    "activation is a list": (TypeError, "activation must be a tensor", dict(activation=[1.0])),
    "activation misses": (ValueError, "activation is needed", dict(activation=None)),
    "gradient misses": (ValueError, "gradient is needed for attribution='grad_input'", dict(gradient=None)),
    "three dimensions": (ValueError, r"\(B, C, H, W\), got \(4, 5, 5\)", dict(activation=F[0])),
    "no channel": (ValueError, "at least one channel", dict(activation=F[:, :0], gradient=F[:, :0])),
    "integers": (TypeError, "float64, got torch.int64", dict(activation=F.long())),
    "shapes differ": (ValueError, "gradient must have the shape of activation", dict(gradient=F[:1])),
    "no prior": (ValueError, "either landmarks or heatmap, got neither", dict(heatmap=None)),
    "two priors": (ValueError, "got both", dict(landmarks=POINTS, image_size=9)),
    "heatmap's batch": (ValueError, r"heatmap must have shape \(2, h, w\)", dict(heatmap=H[:1])),
    "heatmap without a cell": (ValueError, r"heatmap must have shape \(2, h, w\)", dict(heatmap=H[:, :0])),
    "heatmap is complex": (TypeError, "heatmap must hold real numbers", dict(heatmap=H.to(torch.complex64))),
    "visible without landmarks": (ValueError, "belong to landmarks", dict(visible=torch.ones(2, 68).bool())),
    "landmarks' shape": (ValueError, r"\(B, K, 2\)", dict(heatmap=None, landmarks=POINTS[0], image_size=9)),
    "landmarks' batch": (ValueError, "hold 1 samples", dict(heatmap=None, landmarks=POINTS[:1], image_size=9)),
    "image size misses": (ValueError, r"image_size=\(height, width\)", dict(heatmap=None, landmarks=POINTS)),
    "image size is nothing": (ValueError, "image_size must be at least", dict(image_size=0)),
    "image size is text": (TypeError, "image_size must be", dict(image_size="big")),
    "visible is a float": (
        TypeError,
        "visible must be a bool tensor",
        dict(heatmap=None, landmarks=POINTS, image_size=9, visible=POINTS[..., 0]),
    ),
    "weights' shape": (
        ValueError,
        r"weights must have shape \(2, 68\)",
        dict(heatmap=None, landmarks=POINTS, image_size=9, weights=torch.ones(3)),
    ),
    "sample weights": (ValueError, r"sample_weight must have shape \(2,\)", dict(sample_weight=torch.ones(3))),
    "sigma is NaN": (ValueError, "sigma must be positive and finite, got nan", dict(sigma=NAN)),
    "sigma is zero": (ValueError, "sigma must be positive", dict(sigma=0)),
    "sigma is text": (TypeError, "sigma must be a positive number", dict(sigma="wide")),
    "channels": (ValueError, "did you mean 'mean'", dict(channels="meen")),
    "attribution": (ValueError, "did you mean 'grad_input'", dict(attribution="gradinput")),
    "absolute": (TypeError, "absolute must be True or False", dict(absolute="yes")),
    "score": (ValueError, "score must be one of", dict(score="cosine")),
    "scale": (ValueError, "scale must be one of", dict(scale="max")),
    "reduction": (ValueError, "reduction must be one of", dict(reduction="median")),
    "combine": (ValueError, "combine must be one of", dict(combine="prod")),
    "normalize": (ValueError, "normalize must be one of", dict(normalize="l2")),
    "backend": (ValueError, "backend must be one of", dict(backend="tpu")),
    "too many channels": (ValueError, "only 4 channels", dict(channel_count=5)),
    "no channels": (ValueError, "at least 1", dict(channel_count=0)),
    "a fraction above one": (ValueError, r"\(0, 1\]", dict(channel_count=1.5)),
    "a boolean count": (TypeError, "channel_count must be an int", dict(channel_count=True)),
    "weights are NaN": (
        ValueError,
        r"weights must be finite, got \[",
        dict(heatmap=None, landmarks=POINTS, image_size=9, weights=torch.full((68,), NAN)),
    ),
    "moving landmarks": (
        RuntimeError,
        "backend='cpu' has no gradient for the prior",
        dict(heatmap=None, landmarks=POINTS.clone().requires_grad_(), image_size=9, backend="cpu"),
    ),
    "moving heatmap": (
        RuntimeError,
        "backend='cpu' has no gradient for the prior",
        dict(heatmap=torch.rand(2, 9, 9, requires_grad=True), backend="cpu"),
    ),
    "sample weights to learn": (
        ValueError,
        "sample_weight must not require a gradient",
        dict(sample_weight=torch.ones(2, requires_grad=True)),
    ),
    "landmarks of eight bits": (
        TypeError,
        "landmarks must be float16, bfloat16, float32, float64 or integers, got torch.float8_e4m3fn",
        dict(heatmap=None, landmarks=POINTS.to(torch.float8_e4m3fn), image_size=9),
    ),
    "sample weights beside a heatmap to resize": (
        ValueError,
        "sample_weight must be finite",
        dict(heatmap=torch.rand(2, 9, 9), sample_weight=torch.tensor([1.0, NAN])),
    ),
    "cuda on the CPU": (RuntimeError, "it takes CUDA tensors only", dict(backend="cuda")),
}


@pytest.mark.parametrize("case", LOSS, ids=str)
def test_pal_loss_refuses_bad_input_before_any_computation(case, computation_forbidden):
    kind, message, changes = LOSS[case]
    arguments = {"activation": F, "gradient": F, "heatmap": H, **changes}
    with pytest.raises(kind, match=message):
        pal_fast.pal_loss(**arguments)


@pytest.mark.parametrize(
    ("kind", "message", "arguments"),
    [
        (ValueError, "size must be at least 1 x 1", (POINTS, (0, 4))),
        (TypeError, "size must be", (POINTS, 4.5)),
        (TypeError, "landmarks must be a tensor", ([[1, 2]], 4)),
        (TypeError, "landmarks must hold real numbers", (POINTS > 0.5, 4)),
    ],
)
def test_landmark_heatmap_refuses_bad_input_before_any_computation(kind, message, arguments, computation_forbidden):
    with pytest.raises(kind, match=re.compile(message)):
        pal_fast.landmark_heatmap(*arguments)


def test_tensors_on_different_devices_are_refused_before_any_computation(computation_forbidden):
    with pytest.raises(ValueError, match="heatmap is on meta, but the layer's output is on cpu"):
        pal_fast.pal_loss(F, F, H.to("meta"))


@pytest.mark.parametrize("option", [{"image_size": 48}, {"sigma": 3.0}, {"combine": "max"}, {"normalize": "peak"}])
def test_landmark_options_given_with_a_heatmap_are_refused(option):
    f, (name,) = torch.randn(2, 3, 4, 4), option
    with pytest.raises(
        ValueError, match=f"{name} belongs to landmarks, but a heatmap was given: .*, or leave {name} out"
    ):
        pal_fast.pal_loss(f, f, torch.rand(2, 4, 4), **option)


def test_landmarks_passed_as_the_heatmap_are_recognised_by_their_shape():
    f, landmarks = torch.randn(2, 3, 4, 4), torch.rand(2, 68, 2) * 48
    with pytest.raises(
        ValueError, match=r"image_size and sigma belong to .*\(2, 68, 2\) is that of landmarks.*landmarks=\.\.\."
    ):
        pal_fast.pal_loss(f, f, landmarks, image_size=48, sigma=3.0)
    pal_fast.pal_loss(f, f, landmarks=landmarks, image_size=48, sigma=3.0)

"""An operator called directly with a wrong argument raises an error that names it, its value and what is wanted."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import pal_fast

F = torch.rand(2, 4, 5, 6)
POINTS = torch.rand(2, 3, 2)
NAN = math.nan

HEATMAP: dict[str, Any] = dict(
    landmarks=POINTS,
    visible=None,
    weights=None,
    height=5,
    width=6,
    image_height=32.0,
    image_width=32.0,
    sigma=2.0,
    combine=0,
    normalize=0,
)
LOSS: dict[str, Any] = dict(
    activation=F,
    gradient=F,
    heatmap=torch.rand(2, 5, 6),
    landmarks=None,
    visible=None,
    weights=None,
    sample_weight=None,
    image_height=32.0,
    image_width=32.0,
    sigma=2.0,
    combine=0,
    normalize=0,
    attribution=0,
    absolute=True,
    grouping=0,
    channel_count=4,
    score=0,
    scale=0,
    reduction=0,
)
BACKWARD: dict[str, Any] = dict(
    grad_loss=torch.ones(()),
    activation=F,
    gradient=F,
    plane=torch.rand(2, 5, 6),
    coefficients=torch.rand(2, 0, 3),
    factor=torch.rand(2),
    attribution=0,
    absolute=True,
    grouping=0,
    channel_count=4,
    need_activation=True,
    need_gradient=True,
)

WRONG_HEATMAP = {
    "landmarks' dimensions": (dict(landmarks=POINTS[0]), r"landmarks must have shape \[B, K, 2\], got \[3, 2\]"),
    "landmarks' coordinates": (dict(landmarks=torch.rand(2, 3, 3)), r"landmarks must have shape \[2, 3, 2\]"),
    "landmarks' dtype": (dict(landmarks=POINTS.half()), "landmarks must be one of Float, Double, got Half"),
    "landmarks' strides": (dict(landmarks=torch.rand(2, 2, 3).mT), "landmarks must be contiguous, got strides"),
    "visible's shape": (dict(visible=torch.ones(2, 4).bool()), r"visible must have shape \[2, 3\], got \[2, 4\]"),
    "visible's dtype": (dict(visible=torch.ones(2, 3)), "visible must be of dtype Bool, got Float"),
    "weights' dtype": (dict(weights=torch.ones(2, 3).double()), "weights must be of dtype Float, got Double"),
    "weights' shape": (dict(weights=torch.ones(3)), r"weights must have shape \[2, 3\]"),
    "no height": (dict(height=0), "must lie between 1 and"),
    "negative width": (dict(width=-7), "must lie between 1 and"),
    "endless height": (dict(height=2**62), "must lie between 1 and"),
    "no image": (dict(image_height=0.0), "image_height must be positive and finite, got 0"),
    "endless image": (dict(image_width=math.inf), "image_width must be positive and finite"),
    "sigma": (dict(sigma=NAN), "sigma must be positive and finite, got nan"),
    "combine": (dict(combine=2), "combine must be an index from 0 to 1"),
    "normalize": (dict(normalize=-1), "normalize must be an index from 0 to 2"),
}
WRONG_LOSS = {
    "no activation": (dict(activation=None), "activation must be given for attribution 0"),
    "too much activation": (dict(attribution=1), "activation must be None for attribution 1"),
    "no gradient": (dict(gradient=None), "gradient must be given"),
    "nothing at all": (dict(activation=None, gradient=None), "must be given"),
    "three dimensions": (dict(activation=F[0], gradient=F[0]), r"\[B, C, H, W\], got \[4, 5, 6\]"),
    "integers": (dict(activation=F.long(), gradient=F.long()), "activation must be one of"),
    "gradient's shape": (dict(gradient=F[:, :3]), r"gradient must have shape \[2, 4, 5, 6\], got \[2, 3, 5, 6\]"),
    "gradient's dtype": (dict(gradient=F.double()), "gradient must be of dtype Float, got Double"),
    "formats": (
        dict(gradient=F.contiguous(memory_format=torch.channels_last)),
        "must both be contiguous or both channels_last",
    ),
    "strides": (dict(activation=F.mT.contiguous().mT, gradient=F), "must both be contiguous"),
    "no channels": (dict(activation=F[:, :0], gradient=F[:, :0]), "at least one channel"),
    "channel_count": (dict(channel_count=5), "channel_count must lie between 1 and 4, the layer's channels, got 5"),
    "no channel_count": (dict(channel_count=0), "between 1 and 4"),
    "no prior": (dict(heatmap=None), "exactly one of heatmap and landmarks must be given, got neither"),
    "two priors": (dict(landmarks=POINTS), "got both"),
    "heatmap's shape": (dict(heatmap=torch.rand(2, 6, 5)), r"heatmap must have shape \[2, 5, 6\], got \[2, 6, 5\]"),
    "heatmap's dtype": (dict(heatmap=torch.rand(2, 5, 6).double()), "heatmap must be of dtype Float, got Double"),
    "visible alone": (dict(visible=torch.ones(2, 3).bool()), "visible and weights belong to landmarks"),
    "landmarks' batch": (dict(heatmap=None, landmarks=POINTS[:1]), r"landmarks must have shape \[2, 3, 2\]"),
    "sample_weight": (dict(sample_weight=torch.ones(3)), r"sample_weight must have shape \[2\], got \[3\]"),
    "sample_weight's dtype": (dict(sample_weight=torch.ones(2).half()), "sample_weight must be of dtype Float"),
    "attribution": (dict(attribution=3), "attribution must be an index from 0 to 2"),
    "grouping": (dict(grouping=9), "grouping must be an index from 0 to 2"),
    "score": (dict(score=2), "score must be an index from 0 to 1"),
    "scale": (dict(scale=3), "scale must be an index"),
    "reduction": (dict(reduction=-1), "reduction must be an index"),
}
WRONG_BACKWARD = {
    "grad_loss's shape": (dict(grad_loss=torch.ones(3)), r"grad_loss must have shape \[2\], got \[3\]"),
    "grad_loss's dtype": (dict(grad_loss=torch.ones(()).half()), "grad_loss must be of dtype Float"),
    "plane": (dict(plane=torch.rand(2, 30)), r"plane must have shape \[2, 5, 6\]"),
    "coefficients": (dict(grouping=2), r"coefficients must have shape \[2, 4, 3\], got \[2, 0, 3\]"),
    "factor": (dict(factor=torch.rand(1)), r"factor must have shape \[2\]"),
    "a gradient that is not read": (
        dict(attribution=2, gradient=None),
        "need_gradient, but gradient is None",
    ),
}


@pytest.fixture(autouse=True)
def _registered(backend: str) -> None:
    pal_fast.landmark_heatmap(torch.zeros(1, 1, 2, device=backend), 2, backend=backend)


def refuses(operator: Any, arguments: dict[str, Any], backend: str, message: str) -> None:
    on_device = [value.to(backend) if isinstance(value, torch.Tensor) else value for value in arguments.values()]
    with pytest.raises(RuntimeError, match=message):
        operator(*on_device)


@pytest.mark.parametrize("case", WRONG_HEATMAP, ids=str)
def test_landmark_heatmap_refuses(backend, case):
    changes, message = WRONG_HEATMAP[case]
    refuses(torch.ops.pal_fast.landmark_heatmap, HEATMAP | changes, backend, message)
    grad = {"grad": torch.rand(2, 5, 6)}
    needs = {"need_landmarks": True, "need_weights": True}
    refuses(torch.ops.pal_fast.landmark_heatmap_backward, grad | HEATMAP | changes | needs, backend, message)


@pytest.mark.parametrize("case", WRONG_LOSS, ids=str)
def test_pal_loss_refuses(backend, case):
    changes, message = WRONG_LOSS[case]
    refuses(torch.ops.pal_fast.pal_loss, LOSS | changes, backend, message)


@pytest.mark.parametrize("case", WRONG_BACKWARD, ids=str)
def test_pal_loss_backward_refuses(backend, case):
    changes, message = WRONG_BACKWARD[case]
    refuses(torch.ops.pal_fast.pal_loss_backward, BACKWARD | changes, backend, message)


def test_the_unmodified_arguments_are_accepted(backend):
    for operator, arguments in (("landmark_heatmap", HEATMAP), ("pal_loss", LOSS), ("pal_loss_backward", BACKWARD)):
        on_device = [value.to(backend) if isinstance(value, torch.Tensor) else value for value in arguments.values()]
        getattr(torch.ops.pal_fast, operator)(*on_device)

"""The compiled loss against the float64 reference, over dtypes, layouts, odd sizes and the grid of options."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.losses import assert_agrees, layer

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
SHAPES = [(3, 6, 7, 7), (2, 1, 13, 17), (2, 200, 3, 5), (2, 4, 1, 1), (1, 3, 60, 50), (2, 131, 14, 14)]
CHANNELS = [("mean", None), ("half", None), ("mean", 0.3), ("all", None), ("all", 0.4), ("each", None), ("each", 0.4)]
ATTRIBUTIONS = [("grad_input", True), ("grad_input", False), ("grad", True), ("grad", False), ("activation", True)]
SCORES = [("pearson", "sum"), *(("cross_correlation", scale) for scale in ("sum", "mean", "unit"))]


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_option_agrees_with_the_float64_reference(generator, backend, shape, dtype, channels_last):
    f, g = layer(generator, shape, dtype, channels_last=channels_last, device=backend)
    heatmap = torch.rand(shape[0], *shape[2:], generator=generator).to(backend)
    weight = torch.rand(shape[0], generator=generator).to(backend) + 0.1
    # Every attribution with every channel strategy, and the scores in turn; 35 and 12 share no factor, so that
    # over the shapes every score meets all of them.
    scores = itertools.cycle(itertools.product(SCORES, ["mean", "sum", "none"]))
    for _ in range(SHAPES.index(shape) * 7):
        next(scores)
    for (channels, count), (attribution, absolute) in itertools.product(CHANNELS, ATTRIBUTIONS):
        (score, scale), reduction = next(scores)
        assert_agrees(
            f,
            g,
            heatmap,
            backend=backend,
            sample_weight=weight,
            channels=channels,
            channel_count=count,
            attribution=attribution,
            absolute=absolute,
            score=score,
            scale=scale,
            reduction=reduction,
        )

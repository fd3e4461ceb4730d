"""The compiled loss against the float64 reference: options, dtypes, formats, odd sizes, any prior."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from support.loss_problems import CHOICES, check, make, name_of, same_bits
from support.pairwise import pairwise

SHAPES = [
    (3, 6, 7, 7),
    (2, 4, 1, 1),
    (2, 1, 13, 17),
    (3, 2, 1, 5),
    (2, 200, 3, 5),  # more channels than are taken at once
    (1, 3, 60, 50),  # more cells than are taken at once
    (2, 131, 14, 14),
    (70, 16, 4, 4),  # more samples than pieces
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

CASES = pairwise(
    {
        "shape": SHAPES,
        "dtype": DTYPES,
        "layout": ["contiguous", "channels_last", "transposed"],
        "attribution": CHOICES["attribution"],
        "absolute": [True, False],
        "channels": CHOICES["channels"],
        "channel_count": [None, 1, 0.6],
        "score": CHOICES["score"],
        "reduction": CHOICES["reduction"],
        "landmarks": [68, 1, 0, None, "small"],
        "trouble": ["none", "some", "sample"],
        "visible": [False, True],
        "weights": [None, "shared", "own"],
        "sample_weight": [False, True],
        "combine": CHOICES["combine"],
        "normalize": CHOICES["normalize"],
        "sigma": [1.5, 6.0, 20.0],
        "needs": ["both", "activation", "gradient"],
    },
    seed=1,
)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_every_pair_of_options_agrees_with_the_reference_and_repeats_bit_for_bit(
    backend: str, case: dict[str, Any], seed: int, poisoned_memory: None
) -> None:
    problem = make(case, seed, backend)
    first = check(problem, backend)
    assert same_bits(first, problem.solve(backend)), "other bits the second time"


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_attribution_and_channel_strategy_agrees_with_the_reference(
    backend: str, shape: tuple[int, ...], dtype: torch.dtype, layout: str, seed: int
) -> None:
    """Every combination for each shape, dtype and format; scores and reductions take turns."""
    scores = itertools.cycle(itertools.product(CHOICES["score"], CHOICES["reduction"]))
    for _ in range(SHAPES.index(shape) * 7):
        next(scores)
    attributions = [("grad_input", True), ("grad_input", False), ("grad", True), ("grad", False), ("activation", True)]
    counts = [("mean", None), ("half", None), ("mean", 0.3), ("all", None), ("all", 0.4), ("each", None), ("each", 0.4)]
    for (attribution, absolute), (channels, count) in itertools.product(attributions, counts):
        score, reduction = next(scores)
        case = {
            "shape": shape,
            "dtype": dtype,
            "layout": layout,
            "attribution": attribution,
            "absolute": absolute,
            "channels": channels,
            "channel_count": count,
            "score": score,
            "reduction": reduction,
            "landmarks": None,
        }
        check(make(case, seed, backend), backend)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", ["mean", "all", "each"])
def test_a_large_layer_gives_the_same_values_as_its_samples_one_by_one(
    backend: str, channels: str, layout: str, seed: int
) -> None:
    """Gradients beyond 16 MB are written by another path, and by a third on fresh memory; the values are the same."""
    case = {"shape": (3, 8, 38, 38), "channels": channels, "reduction": "none", "landmarks": 9}
    problem, alone = make(case, seed, backend), make(case, seed, backend)
    problem.options["channel_count"] = alone.options["channel_count"] = 1000 if channels == "mean" else 512
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    problem.activation, problem.gradient = (
        torch.randn(3, 1024, 38, 38, device=backend).contiguous(memory_format=memory_format) for _ in range(2)
    )
    problem.upstream = torch.ones_like(problem.upstream)
    assert problem.activation.nbytes > 2**24
    whole = problem.solve(backend)
    assert same_bits(whole, problem.solve(backend))
    for sample in range(3):
        one = slice(sample, sample + 1)
        alone.activation, alone.gradient = problem.activation[one], problem.gradient[one]
        alone.tensors = {name: tensor[one] for name, tensor in problem.tensors.items()}
        alone.upstream = problem.upstream[one]
        loss, gradients = alone.solve(backend)
        torch.testing.assert_close(loss, whole[0][one], rtol=1e-6, atol=1e-7)
        for gradient, of_all in zip(gradients, whole[1], strict=True):
            torch.testing.assert_close(gradient, of_all[one], rtol=1e-5, atol=1e-9)

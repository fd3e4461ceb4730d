"""The Triton loss against the float64 reference, for every pair of options, in the interpreter and on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.loss_problems import CHOICES, check, make, name_of, same_bits
from support.pairwise import pairwise

pytest.importorskip("triton", reason="the package triton is not installed")

CASES = pairwise(
    {
        "shape": [(2, 6, 7, 7), (3, 5, 13, 17), (2, 1, 7, 7), (2, 70, 5, 3), (1, 4, 40, 33), (3, 16, 8, 8)],
        "dtype": [torch.float32, torch.bfloat16, torch.float16, torch.float64],
        "layout": ["contiguous", "channels_last", "transposed"],
        "attribution": CHOICES["attribution"],
        "absolute": [True, False],
        "channels": CHOICES["channels"],
        "channel_count": [None, 1, 0.6],
        "score": CHOICES["score"],
        "reduction": CHOICES["reduction"],
        "landmarks": [20, 1, None, "small"],
        "trouble": ["none", "some", "sample"],
        "visible": [False, True],
        "weights": [None, "shared", "own"],
        "sample_weight": [False, True],
        "combine": CHOICES["combine"],
        "normalize": CHOICES["normalize"],
        "sigma": [6.0, 20.0],
        "needs": ["both", "activation", "gradient"],
    }
)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_loss_and_gradients_agree_with_the_reference_and_repeat_bit_for_bit(
    device: str, case: dict[str, Any], seed: int
) -> None:
    problem = make(case, seed, device)
    first = check(problem, "triton")
    assert same_bits(first, problem.solve("triton")), "other bits the second time"

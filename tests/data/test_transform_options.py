"""Meaningless augmentation options are rejected by name."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torchvision")

from pal_fast.data import train_transform


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"flip": 2}, "flip must be a probability, from 0 to 1, got 2"),
        ({"erase": -0.1}, "erase must be a probability, from 0 to 1, got -0.1"),
        ({"flip": float("nan")}, "flip must be finite"),
        ({"degrees": -5}, "degrees must be 0 or more, got -5"),
        ({"colour": -1}, "colour must be 0 or more, got -1"),
        ({"scale": (1, 0.5)}, r"scale must be \(from, to\) with 0 < from <= to <= 1, got \(1, 0.5\)"),
        ({"scale": (0.5, 1.5)}, r"scale must be .*, got \(0.5, 1.5\)"),
        ({"scale": (0, 1)}, r"scale must be .*, got \(0, 1\)"),
        ({"ratio": (2, 1)}, r"ratio must be \(from, to\) with 0 < from <= to, got \(2, 1\)"),
    ],
)
def test_an_option_out_of_range_is_named_in_the_error(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_transform(48, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"scale": 0.8}, "scale must be"), ({"ratio": (1, 1, 1)}, "ratio must be"), ({"flip": "no"}, "flip")],
)
def test_an_option_of_the_wrong_type_is_named_in_the_error(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        train_transform(48, **given)


def test_the_endpoints_of_the_ranges_are_accepted() -> None:
    train_transform(48, flip=1, degrees=0, scale=(1, 1), ratio=(2, 2), colour=0, erase=1)

"""The order in which a layer is read: by all programs together, from beginning to end, and the second time in reverse.

So the second reading begins with what the first read last, which L2 still holds. All programs of a launch run at once:
if each read a share of its own, the cache would be left with the end of every share.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from itertools import pairwise

import pytest
import torch
from support.triton_launches import TileLoad, recorded_loads

import pal_fast

pytest.importorskip("triton", reason="the package triton is not installed")

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def rounds(loads: list[TileLoad], region: Callable[[TileLoad], Hashable]) -> dict[Hashable, list[tuple[int, int]]]:
    """For each region of the layer, the ranges of elements that all programs' first loads from it cover, their second
    loads, and so on."""
    nth: dict[tuple[Hashable, Hashable], int] = defaultdict(int)
    found: dict[Hashable, dict[int, tuple[int, int]]] = defaultdict(dict)
    for load in loads:
        key = region(load)
        number = nth[key, load.program]
        nth[key, load.program] += 1
        first, last = found[key].get(number, (load.first, load.last))
        found[key][number] = min(first, load.first), max(last, load.last)
    return {key: [ranges[number] for number in sorted(ranges)] for key, ranges in found.items()}


def assert_from_beginning_to_end_and_back(
    first: list[TileLoad], second: list[TileLoad], region: Callable[[TileLoad], Hashable], regions: int
) -> None:
    there, back = rounds(first, region), rounds(second, region)
    assert len(there) == len(back) == regions
    for name, ranges, ascending in (("first", there, True), ("second", back, False)):
        for each in ranges.values():
            assert len(each) > 1, "too small a layer to tell an order"
            ordered = each if ascending else each[::-1]
            for (_, last), (begin, _) in pairwise(ordered):
                assert last < begin, f"{name}: {each}"
        starts = [each[0][0] for each in ranges.values()]
        assert starts == sorted(starts, reverse=not ascending), f"{name}: regions from {starts}"


@pytest.mark.parametrize(
    ("layout", "shape", "channels"),
    [
        ("contiguous", (2, 640, 7, 7), "mean"),
        ("contiguous", (2, 1280, 7, 7), "half"),
        ("contiguous", (2, 160, 14, 14), "all"),
        ("contiguous", (2, 640, 7, 7), "each"),
        ("channels_last", (2, 256, 24, 24), "mean"),
        ("channels_last", (2, 256, 24, 24), "all"),
    ],
)
def test_the_losss_backward_visits_a_layer_in_the_reverse_order_of_its_forward(
    device: str, layout: str, shape: tuple[int, int, int, int], channels: str
) -> None:
    if device == "cuda":
        pytest.skip("the interpreter's loads are recorded")
    f, g = (torch.rand(shape).to(memory_format=LAYOUTS[layout]).requires_grad_() for _ in range(2))
    points = torch.rand(2, 5, 2) * 28
    with recorded_loads(f) as launches:
        loss = pal_fast.pal_loss(f, g, landmarks=points, image_size=28, channels=channels, backend="triton")
        torch.autograd.grad(loss, (f, g))
    forward, backward = launches
    for launch in launches:
        assert sum(load.elements for load in launch) == f.numel() // (2 if channels == "half" else 1)
    assert_from_beginning_to_end_and_back(forward, backward, lambda load: load.first // f[0].numel(), 2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(16, 4, 28, 28), (256, 4, 7, 7)], ids=["planes alone", "planes together"])
def test_batch_normalisation_reads_a_layer_the_second_time_in_reverse(
    device: str, layout: str, shape: tuple[int, int, int, int]
) -> None:
    if device == "cuda":
        pytest.skip("the interpreter's loads are recorded")
    from pal_fast.kernels import batch_norm

    x, grad, v = (torch.rand(shape).to(memory_format=LAYOUTS[layout]) for _ in range(3))
    weight = torch.rand(shape[1])
    with recorded_loads(x) as launches:
        statistics = batch_norm.batch_norm_statistics(x, None, None, True, 0.1, 1e-5)
        state = weight, weight, statistics
        batch_norm.batch_norm(x, *state, True, True)
        _, sums = batch_norm.batch_norm_backward(grad, x, *state, True, True, True, True)
        batch_norm.batch_norm_double_backward(v, None, grad, x, *state, sums, True, True, True)
    reading = [launch for launch in launches if launch]
    assert len(reading) == 6
    for launch in reading:
        assert sum(load.elements for load in launch) == x.numel()
    for first, second in zip(reading[::2], reading[1::2], strict=True):
        tiles = len({load.program[0] for load in first})
        assert_from_beginning_to_end_and_back(first, second, lambda load: load.program[0], tiles)

"""The backward of the loss begins with what the forward read last."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from support import emulated
from support.caches import hits_of_second_pass

import pal_fast

#: (dtype, layout, channels, share of the cache that is found): with equal numbers of blocks forward and backward, and
#: with different ones. The forward of "each" takes few and large steps.
CASES = [
    (torch.bfloat16, "contiguous", "mean", 0.85),
    (torch.float32, "contiguous", "mean", 0.85),
    (torch.float32, "contiguous", "all", 0.85),
    (torch.bfloat16, "contiguous", "each", 0.7),
    (torch.float32, "channels_last", "mean", 0.85),
    (torch.bfloat16, "channels_last", "all", 0.85),
]


def order_of(accesses: list[tuple[int, int, int]]) -> list[int]:
    """The 16-byte vectors in the order in which resident blocks touch them that progress at the same rate."""
    taken: Counter[tuple[int, int]] = Counter()
    order = []
    for block, thread, offset in accesses:
        order.append((taken[block, thread], block, thread, offset // 16))
        taken[block, thread] += 1
    return list(dict.fromkeys(vector for *_, vector in sorted(order)))


@pytest.mark.parametrize(("dtype", "layout", "channels", "share"), CASES)
def test_a_cache_of_half_the_layer_serves_the_backward_what_it_holds(
    emulated_backend: str,
    build_directory: str,
    generator: torch.Generator,
    dtype: torch.dtype,
    layout: str,
    channels: str,
    share: float,
) -> None:
    emulated.machine["processors"] = 4
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    shape = (2, 1024, 8, 8) if layout == "contiguous" else (2, 64, 32, 32)
    activation, gradient = (
        torch.randn(shape, generator=generator).to(dtype).to(memory_format=memory_format).requires_grad_()
        for _ in range(2)
    )
    kernels = emulated.module("pal_loss", build_directory)
    kernels.watch(activation.data_ptr(), activation.nbytes)
    heatmap = torch.rand(2, *shape[2:], generator=generator)
    pal_fast.pal_loss(activation, gradient, heatmap, channels=channels, backend=emulated_backend).backward()

    forward, backward = (order_of(kernel) for kernel in kernels.accesses())
    assert len(forward) == len(backward) == activation.nbytes // 16
    capacity = len(forward) // 2
    assert hits_of_second_pass(forward, backward, capacity) >= share * capacity
    assert hits_of_second_pass(forward, forward, capacity) == 0

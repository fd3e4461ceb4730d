"""Triton compiles the loss's kernels to machine code for AMD GPUs too; the code is not run."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

pytest.importorskip("triton", reason="the package triton is not installed")

from support.triton_compile import compiling_for_rocm

from pal_fast.constants import GROUPING

pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="triton interprets in this process"),
    pytest.mark.skipif(
        importlib.util.find_spec("triton.backends.amd") is None, reason="this triton has no AMD backend"
    ),
]


@pytest.mark.parametrize("grouping", GROUPING)
@pytest.mark.parametrize("architecture", ["gfx942", "gfx1100"])  # MI300: 64 threads a warp; RX 7900: 32
def test_the_loss_compiles_forward_and_backward(architecture, grouping):
    from pal_fast.kernels.pal_loss import pal_loss, pal_loss_backward

    layer, points = torch.empty(8, 64, 14, 14, dtype=torch.float16), torch.empty(8, 68, 2)
    prior = (None, points, torch.ones(8, 68) > 0, points[..., 0])
    options = (0, True, GROUPING.index(grouping), 64)
    with compiling_for_rocm(architecture) as compiled:
        out = pal_loss(layer, layer, *prior, torch.ones(8), 224.0, 224.0, 14.0, 0, 0, *options, 0, 0, 0)
        pal_loss_backward(out[0], layer, layer, *out[1:], *options, True, True)
    forward = "each_forward_kernel" if grouping == "each" else "pal_loss_forward_kernel"
    assert compiled == [forward, "pal_loss_backward_kernel"]

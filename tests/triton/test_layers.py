"""The Triton second derivatives of LayerNorm, GELU and SiLU against their operators in float64."""

from __future__ import annotations

import pytest
import torch
from support.compare import assert_close
from torch import Tensor

from pal_fast.nn import layer_norm, smooth_activations

pytest.importorskip("triton", reason="the package triton is not installed")

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def normal(generator: torch.Generator, device: str, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(40, 48), (3, 5, 7), (9, 384), (2, 1), (3, 1200)], ids=str)
def test_layer_norm_agrees_with_its_composed_operators(
    device: str, shape: tuple[int, ...], affine: bool, dtype: torch.dtype, seed: int
) -> None:
    from pal_fast.kernels.layer_norm import layer_norm_double_backward

    generator = torch.Generator().manual_seed(seed)
    last = shape[1:]
    v, grad, input = (normal(generator, device, dtype, *shape) for _ in range(3))
    weight = normal(generator, device, dtype, *last) if affine else None
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    _, mean, rstd = torch.native_layer_norm(input.to(wide), last, None, None, 1e-5)
    got = layer_norm_double_backward(v, grad, input, weight, mean, rstd, input[0].numel())
    exact = [tensor.double() for tensor in (v, grad, input)]
    _, *moments = torch.native_layer_norm(exact[2], last, None, None, 1e-5)
    judge = layer_norm._by_operators(*exact, None if weight is None else weight.double(), *moments, last)
    for name, value, wanted in zip(("d_grad", "d_input", "d_weight"), got, judge, strict=True):
        if wanted is None:
            assert value is None
            continue
        assert value is not None
        assert value.dtype == dtype
        if last == (1,):
            assert value.abs().max() <= 1e-3, name  # with one element only rounding is left
        else:
            assert_close(value, wanted, dtype, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_activations_agree_with_their_composed_operators(
    device: str, layout: torch.memory_format, kind: str, dtype: torch.dtype, seed: int
) -> None:
    from pal_fast.kernels.smooth_activations import activation_double_backward

    generator = torch.Generator().manual_seed(seed)
    v, grad, input = (3 * normal(generator, device, dtype, 5, 7, 10, 10) for _ in range(3))
    input = input.contiguous(memory_format=layout)
    input[0, 0, 0, :4] = torch.tensor([0.0, -0.0, 300.0, -300.0])
    got = activation_double_backward(v, grad, input, kind)
    judge = smooth_activations._by_operators(v.double(), grad.double(), input.double(), kind)
    for name, value, wanted in zip(("d_grad", "d_input"), got, judge, strict=True):
        assert value.dtype == dtype
        assert_close(value, wanted, dtype, name)

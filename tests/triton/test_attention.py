"""The Triton attention kernels against their operators in float64, and the attention composed of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
from support.compare import assert_close, relative_error
from support.networks import by_math
from support.operator_calls import OperatorCalls, computes
from torch import Tensor

from pal_fast.nn import attention, attention_matrices, attention_operators, triton_derivatives

pytest.importorskip("triton", reason="the package triton is not installed")

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("keys", "padding"), [(1, 0), (5, 3), (64, 0), (197, 3), (1200, 0)])
def test_the_kernels_agree_with_the_composed_operators(
    device: str, keys: int, padding: int, dtype: torch.dtype, seed: int
) -> None:
    from pal_fast.kernels import attention as kernels

    generator = torch.Generator().manual_seed(seed)
    rows, scale = 11, -0.37 if keys == 5 else 0.37
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*widths: int) -> list[Tensor]:
        """Matrices whose padding must not matter, side by side, in float32 at least."""
        return [torch.randn(2, rows, width, generator=generator, dtype=torch.float64).to(wide) for width in widths]

    def padded(*matrices: Tensor) -> Tensor:
        filler = torch.full((2, rows, padding), 7.0, dtype=wide)
        return torch.cat([part for matrix in matrices for part in (matrix, filler)], -1).to(device)

    scores, d_weights, of_weights, u = normal(*(keys,) * 4)
    scores[0, 0] = -math.copysign(math.inf, scale)  # a fully masked row
    weights = kernels.attention_weights(padded(scores), scale, keys, dtype)
    assert weights.dtype == dtype
    assert not weights[..., keys:].any()
    exact = attention_operators.attention_weights(scores.double(), scale, keys, torch.float64)
    assert_close(weights[..., :keys], exact, dtype, "P")

    exact = weights[..., :keys].double().cpu()  # The derivatives are taken at the rounded P.
    got = kernels.attention_backward(weights, padded(d_weights), scale)
    assert got.dtype == dtype
    judge = attention_operators.attention_backward(exact, d_weights.double(), scale)
    of_d_weights, of_scores = kernels.attention_double_backward(
        weights, padded(d_weights, of_weights), padded(u), scale
    )
    both = torch.cat([d_weights, of_weights], -1).double()
    judges = attention_operators.attention_double_backward(exact, both, u.double(), scale)
    named = {
        "dS": (got, judge),
        "of dP": (of_d_weights, judges[0]),
        "of S": (of_scores[..., : keys + padding], judges[1][..., :keys]),
        "dS once more": (of_scores[..., keys + padding :], judges[1][..., keys:]),
    }
    for name, (value, wanted) in named.items():
        assert not value[..., keys:].any(), name
        if keys == 1:
            assert value.abs().max() <= 1e-2, name  # with one key only rounding is left
        else:
            assert_close(value[..., :keys], wanted, dtype, name)


@contextmanager
def kernels_enabled_on_any_device() -> Iterator[None]:
    """Inside, attention runs the kernels, and 16-bit matrix products return float32, which PyTorch supports on GPUs
    only."""
    from pal_fast.kernels import attention as kernels

    def wide(a: Tensor, b: Tensor) -> Tensor:
        return torch.bmm(a.float(), b.float()) if a.dtype.itemsize == 2 else torch.bmm(a, b)

    with (
        mock.patch.object(attention_matrices, "wide_product", wide),
        mock.patch.object(attention, "wide_product", wide),
        mock.patch.object(attention_matrices, "_multiplies_into_float32", return_value=True),
        mock.patch.object(triton_derivatives, "attention_kernels", return_value=kernels),
    ):
        yield


def step(call: Any, tensors: list[Tensor]) -> list[Tensor]:
    """The output, its derivatives, and their derivatives, each for random float64 upstream gradients."""
    generator = torch.Generator().manual_seed(1)

    def upstream(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device, like.dtype)

    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    output = call(*tensors)
    d_output = upstream(output).requires_grad_()
    first = torch.autograd.grad(output, tensors, d_output, create_graph=True)
    second = torch.autograd.grad(first, [d_output, *tensors], [upstream(g) for g in first])
    return [t.detach() for t in (output, *first, *second)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["", "masked", "flash attention", "keys and values with an offset"])
def test_the_error_of_attention_is_the_rounding_of_its_dtype(
    device: str, kind: str, dtype: torch.dtype, seed: int
) -> None:
    """An offset common to all keys or values has no effect on the derivatives; rounding must not give it one."""
    generator = torch.Generator().manual_seed(seed)
    features = 8 if kind == "flash attention" else 4
    shapes = [(2, 2, 17, 8), (2, 2, 13, 8), (2, 2, 13, features), (2, 1, 17, 13)][: 4 if kind == "masked" else 3]
    exact = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    if "offset" in kind:
        exact[1:] = [tensor + 4.0 for tensor in exact[1:]]
    exact = [tensor.to(dtype).double() for tensor in exact]
    if kind == "flash attention" and device == "cuda":
        pytest.skip("by the kernel for CPUs; tests/nn/test_flash_attention_gpu.py has a GPU's")
    flash = mock.patch.object(attention, "serves", return_value=True) if kind == "flash attention" else nullcontext()
    with kernels_enabled_on_any_device(), flash:
        got = step(attention.attention, [tensor.to(device, dtype) for tensor in exact])
    bound = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    for index, (value, wanted) in enumerate(zip(got, step(by_math, exact), strict=True)):
        assert value.dtype == dtype
        assert relative_error(value, wanted) <= bound, index


class Matrices(OperatorCalls):
    """Also records the operators that read or write a query-by-key matrix, `on_matrices`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.on_matrices = size, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        tensors = [t for t in (*args, result) if isinstance(t, Tensor)]
        if computes(str(func)) and "transpose" not in str(func) and any(t.numel() >= self.size for t in tensors):
            self.on_matrices.append(func.name())
        return result


def test_the_second_derivative_takes_one_kernel_and_eight_products(device: str) -> None:
    tensors = [torch.randn(1, 2, 64, 8, device=device, requires_grad=True) for _ in "qkv"]
    with kernels_enabled_on_any_device():
        output = attention.attention(*(tensor * 1 for tensor in tensors))
        first = torch.autograd.grad(output, tensors, torch.randn_like(output).requires_grad_(), create_graph=True)
        with Matrices(2 * 64 * 64) as calls:
            torch.autograd.grad(first, tensors, [torch.randn_like(g) for g in first])
    products = [name for name in calls.on_matrices if "bmm" in name]
    assert len(products) == 8
    # No other operator touches such a matrix; the interpreter copies its launch arguments.
    copies = ("aten::empty_like", "aten::new_empty", "aten::set_", "aten::copy_", "aten::split")
    assert all(name.startswith(copies) for name in calls.on_matrices if name not in products), calls.on_matrices

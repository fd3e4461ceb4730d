"""pal_fast.nn.LayerNorm against PyTorch's: derivatives, and that nothing unrequested is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.operator_calls import OperatorCalls
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

import pal_fast.nn


def step(layer: nn.Module, input: Tensor) -> list[Tensor | None]:
    """The gradient of a score with respect to the input, and of its square with respect to input and parameters."""
    input = input.detach().requires_grad_()
    output = layer(input * 1)
    score = output.float() if output.element_size() < 4 else output
    (g,) = torch.autograd.grad(score.pow(3).sum() / score.shape[-1] ** 0.5, input, create_graph=True)
    (g.float() if g.element_size() < 4 else g).square().sum().backward()
    return [output.detach(), g.detach(), input.grad, *(parameter.grad for parameter in layer.parameters())]


@pytest.mark.parametrize("shape", [(5,), (3, 4), (1,)], ids=str)
@pytest.mark.parametrize(("affine", "bias"), [(True, True), (True, False), (False, False)])
def test_gradcheck_and_gradgradcheck(shape: tuple[int, ...], affine: bool, bias: bool) -> None:
    layer = pal_fast.nn.LayerNorm(shape, elementwise_affine=affine, bias=bias, dtype=torch.float64)
    names = [name for name, _ in layer.named_parameters()]

    def call(input: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (input,))

    input = torch.randn(2, 3, *shape, dtype=torch.float64, requires_grad=True)
    values = [torch.randn_like(parameter).requires_grad_() for parameter in layer.parameters()]
    assert gradcheck(call, (input, *values))
    assert gradgradcheck(call, (input, *values))


def test_the_attribution_pass_computes_no_weight_gradient() -> None:
    layer = pal_fast.nn.LayerNorm(8)
    input = torch.randn(2, 6, 8, requires_grad=True) * 1
    output = layer(input)
    with OperatorCalls() as calls:
        torch.autograd.grad(output.sum(), input, create_graph=True)
    assert calls.wanted == [(True, False, False)]


def test_the_second_derivative_takes_at_most_half_of_pytorchs_operators() -> None:
    counts = []
    for kind in (pal_fast.nn.LayerNorm, nn.LayerNorm):
        input = torch.randn(4, 6, 8, requires_grad=True) * 1
        upstream = torch.randn(4, 6, 8, requires_grad=True)
        (g,) = torch.autograd.grad(kind(8)(input), input, upstream * 1, create_graph=True)
        with OperatorCalls() as calls:
            g.backward(torch.ones_like(g))
        counts.append(calls.computing)
    assert counts[0] <= 26
    assert counts[0] <= counts[1] / 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_layer_is_as_accurate_as_pytorchs(dtype: torch.dtype) -> None:
    exact, ours, theirs = nn.LayerNorm(64), pal_fast.nn.LayerNorm(64, dtype=dtype), nn.LayerNorm(64, dtype=dtype)
    with torch.no_grad():
        exact.weight.copy_(torch.randn(64).to(dtype))
    for layer in (ours, theirs):
        layer.load_state_dict(exact.state_dict())
    input = torch.randn(32, 64).to(dtype)
    judge = step(exact.double(), input.double())
    errors = []
    for layer in (ours, theirs):
        got = step(layer, input)
        assert all(value is None or value.dtype == dtype for value in got)
        errors.append([_error(value, wanted) for value, wanted in zip(got, judge, strict=True)])
    assert all(own <= 3 * other + 1e-3 for own, other in zip(*errors, strict=True)), errors


def _error(value: Tensor | None, wanted: Tensor | None) -> float:
    assert value is not None
    assert wanted is not None
    return ((value.double() - wanted).norm() / wanted.norm().clamp_min(1e-30)).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_agrees_with_pytorch_under_autocast(dtype: torch.dtype) -> None:
    ours, theirs = pal_fast.nn.LayerNorm(64), nn.LayerNorm(64)
    input = torch.randn(32, 64, dtype=dtype)
    results: list[list[Tensor | None]] = []
    for layer in (ours, theirs):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            results.append(step(layer, input))
    for got, wanted in zip(*results, strict=True):
        assert got is not None
        assert wanted is not None
        assert got.dtype == wanted.dtype
        torch.testing.assert_close(got, wanted, rtol=5e-2, atol=5e-2 * wanted.abs().max().item())


def test_a_third_derivative_raises() -> None:
    layer, input = pal_fast.nn.LayerNorm(4), torch.randn(3, 4, requires_grad=True)
    (first,) = torch.autograd.grad(layer(input).pow(3).sum(), input, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(3).sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.sum().backward()


@pytest.mark.parametrize("shape", [(0, 4), (2, 4)], ids=str)
def test_empty_batches_and_passes_without_gradients_work(shape: tuple[int, ...]) -> None:
    layer = pal_fast.nn.LayerNorm(4)
    assert layer(torch.randn(shape, requires_grad=True)).shape == shape
    with torch.no_grad():
        assert not layer(torch.randn(shape)).requires_grad


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "width", "affine"), [(50, 384, True), (7, 20, False), (3, 4097, True), (5, 1, True)])
def test_a_gpu_agrees_with_the_cpu(rows: int, width: int, affine: bool, dtype: torch.dtype) -> None:
    layer: Any = pal_fast.nn.LayerNorm(width, elementwise_affine=affine)
    input = torch.randn(rows, width).to(dtype)
    judge = step(layer.double(), input.double())
    layer.zero_grad()
    on_gpu = pal_fast.nn.LayerNorm(width, elementwise_affine=affine, device="cuda", dtype=dtype)
    on_gpu.load_state_dict(layer.state_dict())
    bound = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    for value, wanted in zip(step(on_gpu, input.cuda()), judge, strict=True):
        assert value is not None
        assert wanted is not None
        if wanted.norm() > 1e-12:
            assert _error(value.cpu(), wanted) <= bound

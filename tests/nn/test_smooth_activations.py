"""pal_fast.nn.GELU and SiLU against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from support.operator_calls import OperatorCalls
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import pal_fast.nn

KINDS = ["gelu", "gelu tanh", "silu"]


def layers(kind: str) -> tuple[nn.Module, nn.Module]:
    """Ours and PyTorch's."""
    if kind == "silu":
        return pal_fast.nn.SiLU(), nn.SiLU()
    approximate = "tanh" if "tanh" in kind else "none"
    return pal_fast.nn.GELU(approximate), nn.GELU(approximate)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_and_gradgradcheck(kind: str) -> None:
    layer, _ = layers(kind)
    input = (3 * torch.randn(4, 5, dtype=torch.float64)).requires_grad_()
    assert gradcheck(layer, (input,))
    assert gradgradcheck(layer, (input,))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_pytorch_in_float64(
    kind: str, layout: torch.memory_format, dtype: torch.dtype, device: str
) -> None:
    x, g, v = (3 * torch.randn(3, 7, 10, 10, dtype=torch.float64) for _ in range(3))
    x[0, 0, 0, :4] = torch.tensor([0.0, -0.0, 40.0, -40.0])
    x, g, v = (tensor.to(dtype).double().contiguous(memory_format=layout) for tensor in (x, g, v))
    results = []
    for layer, of_layer, where in zip(layers(kind), (dtype, torch.float64), (device, "cpu"), strict=True):
        input, upstream = (tensor.to(where, of_layer).requires_grad_() for tensor in (x, g))
        output = layer(input)
        (dx,) = torch.autograd.grad(output, input, upstream, create_graph=True)
        results.append([output, dx, *torch.autograd.grad(dx, (upstream, input), v.to(where, of_layer))])
    bound = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    for got, wanted in zip(*results, strict=True):
        assert got.dtype == dtype
        assert got.is_contiguous(memory_format=layout)
        assert (got.detach().double().cpu() - wanted).norm() <= bound * wanted.norm()


@pytest.mark.parametrize(("kind", "most"), [("gelu", 12), ("gelu tanh", 21), ("silu", 14)])
def test_both_derivatives_take_fewer_operators_than_pytorchs(kind: str, most: int) -> None:
    counts = []
    for layer in layers(kind):
        input, upstream = (torch.randn(4, 6, requires_grad=True) for _ in range(2))
        with OperatorCalls() as calls:
            (g,) = torch.autograd.grad(layer(input), input, upstream, create_graph=True)
            torch.autograd.grad(g, (input, upstream), torch.ones_like(g))
        counts.append(calls.computing)
    assert counts[0] <= most < counts[1]


def test_an_inplace_layer_does_not_overwrite_its_input() -> None:
    input = torch.randn(3, 4, requires_grad=True)
    between = input * 1
    output = pal_fast.nn.SiLU(inplace=True)(between)
    (g,) = torch.autograd.grad(output.pow(2).sum(), input, create_graph=True)
    g.sum().backward()
    assert torch.equal(between, input)


@pytest.mark.parametrize("kind", KINDS)
def test_a_third_derivative_raises(kind: str) -> None:
    layer, _ = layers(kind)
    input = torch.randn(3, requires_grad=True)
    (first,) = torch.autograd.grad(layer(input).pow(3).sum(), input, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(3).sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.sum().backward()

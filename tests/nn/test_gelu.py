"""pal_fast.nn.GELU against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

import pal_fast.nn

KINDS = ["none", "tanh"]


class Calls(TorchDispatchMode):
    """How many operators compute something."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += "detach" not in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("approximate", KINDS)
def test_gradcheck_and_gradgradcheck(approximate: str) -> None:
    layer = pal_fast.nn.GELU(approximate)
    input = (3 * torch.randn(4, 5, dtype=torch.float64)).requires_grad_()
    assert gradcheck(layer, (input,))
    assert gradgradcheck(layer, (input,))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("approximate", KINDS)
def test_agrees_with_pytorch_in_float64(approximate: str, dtype: torch.dtype, device: str) -> None:
    x, g, v = (3 * torch.randn(3, 700, dtype=torch.float64) for _ in range(3))
    x[0, :4] = torch.tensor([0.0, -0.0, 40.0, -40.0])
    x, g, v = (tensor.to(dtype).double() for tensor in (x, g, v))
    results = []
    for layer, kind, where in (
        (nn.GELU(approximate), torch.float64, "cpu"),
        (pal_fast.nn.GELU(approximate), dtype, device),
    ):
        input, upstream = (tensor.to(where, kind).requires_grad_() for tensor in (x, g))
        output = layer(input)
        (dx,) = torch.autograd.grad(output, input, upstream, create_graph=True)
        results.append([output, dx, *torch.autograd.grad(dx, (upstream, input), v.to(where, kind))])
    bound = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    for wanted, got in zip(*results, strict=True):
        assert got.dtype == dtype
        assert (got.detach().double().cpu() - wanted).norm() <= bound * wanted.norm()


@pytest.mark.parametrize(("approximate", "most"), [("none", 10), ("tanh", 19)])
def test_the_second_derivative_takes_fewer_operators_than_pytorchs(approximate: str, most: int) -> None:
    counts = []
    for kind in (pal_fast.nn.GELU, nn.GELU):
        input, upstream = (torch.randn(4, 6, requires_grad=True) for _ in range(2))
        (g,) = torch.autograd.grad(kind(approximate)(input), input, upstream, create_graph=True)
        with Calls() as calls:
            torch.autograd.grad(g, (input, upstream), torch.ones_like(g))
        counts.append(calls.count)
    assert counts[0] <= most < counts[1]


def test_a_third_derivative_raises() -> None:
    input = torch.randn(3, requires_grad=True)
    (first,) = torch.autograd.grad(pal_fast.nn.GELU()(input).pow(3).sum(), input, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(3).sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.sum().backward()

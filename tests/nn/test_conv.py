"""pal_fast.nn.Conv2d against PyTorch's: derivatives, and that nothing unrequested is computed."""

from __future__ import annotations

import pytest
import torch
from support.operator_calls import OperatorCalls
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

import pal_fast.nn
from pal_fast.nn.plain_conv import Geometry
from pal_fast.nn.traced_conv import convolution

GEOMETRIES = [
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 1},
    {"kernel_size": (2, 3), "groups": 2, "dilation": 2, "bias": False},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_gradcheck_and_gradgradcheck(geometry: dict[str, object]) -> None:
    layer = pal_fast.nn.Conv2d(2, 4, dtype=torch.float64, **geometry)
    names = [name for name, _ in layer.named_parameters()]

    def call(input: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (input,))

    input = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    values = [parameter.detach().clone().requires_grad_() for parameter in layer.parameters()]
    assert gradcheck(call, (input, *values))
    assert gradgradcheck(call, (input, *values))


@pytest.mark.parametrize(
    "geometry", [((1, 1), (0, 0), (1, 1), 1), ((2, 1), (1, 0), (1, 2), 2)], ids=["plain", "grouped"]
)
@pytest.mark.parametrize("bias", [True, False])
def test_the_convolution_of_compiled_steps_is_differentiable_any_number_of_times(
    geometry: tuple[tuple[int, int], tuple[int, int], tuple[int, int], int], bias: bool
) -> None:
    input = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 4 // geometry[-1], 2, 3, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(6, dtype=torch.float64, requires_grad=True) if bias else None

    def call(*tensors: Tensor) -> Tensor:
        return convolution(tensors[0], tensors[1], tensors[2] if bias else None, Geometry(*geometry))

    def gradient(*tensors: Tensor) -> Tensor:
        output = call(*tensors)
        (found,) = torch.autograd.grad(output.pow(3).sum(), tensors[0], create_graph=True)
        return found

    tensors = (input, weight) if offset is None else (input, weight, offset)
    stride, padding, dilation, groups = geometry
    wanted = nn.functional.conv2d(input, weight, offset, stride, padding, dilation, groups)
    torch.testing.assert_close(call(*tensors), wanted)
    assert gradcheck(call, tensors)
    assert gradgradcheck(call, tensors)
    assert gradgradcheck(gradient, tensors)


@pytest.mark.parametrize("frozen_below", [False, True])
def test_the_attribution_pass_computes_no_weight_gradient(frozen_below: bool) -> None:
    layer = pal_fast.nn.Conv2d(3, 4, 3)
    source = torch.randn(2, 3, 6, 6, requires_grad=True)
    input = source if frozen_below else source * 1
    with OperatorCalls() as calls:
        output = layer(input)
        torch.autograd.grad(output.sum(), input, create_graph=True)
    assert calls.names.count("aten.convolution.default") == 1
    assert calls.wanted == [(True, False, False)]


def test_the_second_derivative_takes_at_most_three_ordinary_convolutions() -> None:
    layer = pal_fast.nn.Conv2d(3, 4, 3, bias=False)
    input = (torch.randn(2, 3, 6, 6, requires_grad=True) * 1).requires_grad_()
    output = layer(input)
    (gradient,) = torch.autograd.grad(output.square().sum(), input, create_graph=True)
    with OperatorCalls() as calls:
        gradient.square().sum().backward()
    # The derivative of dgrad(g, w) takes conv for g and wgrad for w; g = 2 y then leads back into the forward.
    assert calls.names.count("aten.convolution.default") == 1
    assert sorted(calls.wanted) == [(False, True, False), (True, True, False)]


def test_agrees_with_pytorch_under_autocast() -> None:
    ours, theirs = pal_fast.nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    theirs.load_state_dict(ours.state_dict())
    input = torch.randn(2, 3, 8, 8, requires_grad=True)
    gradients = []
    for layer in (ours, theirs):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = layer(input)
        assert output.dtype == torch.bfloat16
        (g,) = torch.autograd.grad(output.float().square().sum(), input, create_graph=True)
        g.square().sum().backward()
        gradients.append((g, layer.weight.grad))
    for got, wanted in zip(*gradients, strict=True):
        assert got.dtype == wanted.dtype
        torch.testing.assert_close(got, wanted, rtol=5e-2, atol=5e-2 * wanted.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_autocast_casts_as_for_pytorchs_layer(dtype: torch.dtype) -> None:
    ours, theirs = (kind(3, 4, 3, dtype=dtype) for kind in (pal_fast.nn.Conv2d, nn.Conv2d))
    theirs.load_state_dict(ours.state_dict())
    input = torch.randn(2, 3, 8, 8, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(ours(input), theirs(input))


def test_a_third_derivative_raises() -> None:
    layer = pal_fast.nn.Conv2d(1, 1, 1)
    input = torch.randn(1, 1, 2, 2, requires_grad=True)
    (first,) = torch.autograd.grad(layer(input).pow(3).sum(), input, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(3).sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.sum().backward()


def test_without_gradients_the_output_requires_none() -> None:
    layer = pal_fast.nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        assert not layer(torch.randn(1, 3, 5, 5)).requires_grad

"""PyTorch's requirements for operators: schema, fakes, autograd, first derivatives, and an error for the second."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
from support.gpu import VIRTUAL
from torch import Tensor
from torch.autograd import forward_ad

import pal_fast

ALL_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def heatmap_arguments(backend: str, grad: bool, *, weights: bool = True, combine: int = 0) -> tuple[Any, ...]:
    points = (torch.rand(2, 4, 2, device=backend) * 20).requires_grad_(grad)
    strengths = (torch.rand(2, 4, device=backend) + 0.5).requires_grad_(grad) if weights else None
    visible = torch.tensor([[True, True, False, True]] * 2, device=backend)
    return points, visible, strengths, 7, 5, 20.0, 18.0, 3.0, combine, 1


def loss_arguments(
    backend: str,
    grad: bool,
    *,
    attribution: int = 0,
    grouping: int = 0,
    reduction: int = 0,
    landmarks: bool = True,
    dtype: torch.dtype = torch.float32,
) -> tuple[Any, ...]:
    f, g = (torch.randn(2, 6, 5, 4, dtype=dtype, device=backend, requires_grad=grad) for _ in range(2))
    layer = (None if attribution == 1 else f, None if attribution == 2 else g)
    points = torch.rand(2, 4, 2, device=backend) * 20
    heatmap = torch.rand(2, 5, 4, device=backend)
    prior = (None, points, None, None) if landmarks else (heatmap, None, None, None)
    weight = torch.rand(2, device=backend) + 0.5
    frame = (20.0, 18.0, 3.0, 0, 0)
    return (*layer, *prior, weight, *frame, attribution, True, grouping, 4, 0, 0, reduction)


@pytest.fixture(autouse=True)
def _registered(backend: str) -> None:
    pal_fast.landmark_heatmap(torch.zeros(1, 1, 2, device=backend), 2, backend=backend)


@pytest.mark.parametrize("grad", [False, True], ids=["without grad", "with grad"])
@pytest.mark.parametrize("combine", [0, 1])
def test_the_heatmap_passes_opcheck(backend, combine, grad):
    for weights in (False, True):
        arguments = heatmap_arguments(backend, grad, weights=weights, combine=combine)
        torch.library.opcheck(torch.ops.pal_fast.landmark_heatmap.default, arguments, test_utils=ALL_CHECKS)


@pytest.mark.parametrize("grad", [False, True], ids=["without grad", "with grad"])
@pytest.mark.parametrize("attribution", [0, 1, 2])
@pytest.mark.parametrize("grouping", [0, 1, 2])
def test_the_loss_passes_opcheck(backend, grouping, attribution, grad):
    options = {"attribution": attribution, "grouping": grouping, "reduction": grouping, "landmarks": attribution == 0}
    arguments = loss_arguments(backend, grad, **options)
    # Tracing a graph is checked once per grouping; it takes half a second.
    checks = ALL_CHECKS if attribution == 0 else ALL_CHECKS[:3]
    torch.library.opcheck(torch.ops.pal_fast.pal_loss.default, arguments, test_utils=checks)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_fakes_of_the_loss_know_every_dtype(backend, dtype):
    operators = torch.ops.pal_fast
    f, g, *rest = loss_arguments(backend, False, dtype=dtype)
    rest = [
        a.to(torch.float64 if dtype == torch.float64 else torch.float32) if isinstance(a, Tensor) else a for a in rest
    ]
    torch.library.opcheck(operators.pal_loss.default, (f, g, *rest), test_utils="test_faketensor")
    loss, *derivative = operators.pal_loss(f, g, *rest)
    arguments = (torch.ones_like(loss), f, g, *derivative, 0, True, 0, 4, True, True)
    torch.library.opcheck(operators.pal_loss_backward.default, arguments, test_utils="test_faketensor")


def test_the_backward_operators_pass_opcheck(backend):
    operators = torch.ops.pal_fast
    checks = ("test_schema", "test_faketensor")
    points, visible, weights, *rest = heatmap_arguments(backend, False)
    grad = torch.randn(2, 7, 5, device=backend)
    for needs in itertools.product((False, True), repeat=2):
        arguments = (grad, points, visible, weights, *rest, *needs)
        torch.library.opcheck(operators.landmark_heatmap_backward.default, arguments, test_utils=checks)
    for grouping in range(3):
        f, g, *others = loss_arguments(backend, False, grouping=grouping)
        loss, *derivative = operators.pal_loss(f, g, *others)
        for needs in itertools.product((False, True), repeat=2):
            arguments = (torch.ones_like(loss), f, g, *derivative, 0, True, grouping, 4, *needs)
            torch.library.opcheck(operators.pal_loss_backward.default, arguments, test_utils=checks)


def test_of_the_outputs_only_the_loss_has_a_gradient(backend):
    outputs = torch.ops.pal_fast.pal_loss(*loss_arguments(backend, True))
    assert [output.requires_grad for output in outputs] == [True, False, False, False]


def test_outputs_do_not_alias_inputs_and_inputs_are_unchanged(backend):
    arguments = loss_arguments(backend, False)
    copies = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
    torch.ops.pal_fast.pal_loss(*arguments)
    for argument, copy in zip(arguments, copies, strict=True):
        assert not isinstance(argument, Tensor) or torch.equal(argument, copy)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", ["mean", "half", "all", "each"])
@pytest.mark.parametrize("attribution", ["grad_input", "grad", "activation"])
def test_gradcheck_of_the_loss(backend, attribution, channels, channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    f, g = (
        torch.randn(2, 4, 3, 5, dtype=torch.float64, device=backend).contiguous(memory_format=layout) for _ in range(2)
    )
    g = torch.where(g.abs() < 0.05, 0.5, g)  # the corner of abs is no place for finite differences
    points = torch.rand(2, 5, 2, dtype=torch.float64, device=backend) * 20
    f.requires_grad_(attribution != "grad"), g.requires_grad_(attribution != "activation")
    for absolute, score, reduction in ((True, "pearson", "mean"), (False, "cross_correlation", "none")):
        assert torch.autograd.gradcheck(
            lambda f, g, a=absolute, s=score, r=reduction: pal_fast.pal_loss(
                f,
                g,
                landmarks=points,
                image_size=20,
                attribution=attribution,
                channels=channels,
                absolute=a,
                score=s,
                reduction=r,
                backend=backend,
            ),
            (f, g),
            fast_mode=VIRTUAL,
        )


@pytest.mark.parametrize("normalize", ["none", "peak", "sum"])
@pytest.mark.parametrize("combine", ["sum", "max"])
def test_gradcheck_of_the_heatmap(backend, combine, normalize):
    points = (torch.rand(2, 4, 2, dtype=torch.float64, device=backend) * 20).requires_grad_()
    weights = (torch.rand(2, 4, dtype=torch.float64, device=backend) + 0.5).requires_grad_()
    options = {"image_size": 20, "combine": combine, "normalize": normalize, "backend": backend}
    assert torch.autograd.gradcheck(
        lambda p, w: pal_fast.landmark_heatmap(p, (5, 4), weights=w, **options), (points, weights)
    )


def test_a_second_derivative_raises(backend):
    f, g = (torch.randn(2, 3, 5, 5, device=backend, requires_grad=True) for _ in range(2))
    points = (torch.rand(2, 4, 2, device=backend) * 20).requires_grad_()
    loss = pal_fast.pal_loss(f, g, landmarks=points.detach(), image_size=20, backend=backend)
    for first in torch.autograd.grad(loss, (f, g), create_graph=True):
        with pytest.raises(RuntimeError, match='backend="reference"'):
            first.sum().backward()
    heatmap = pal_fast.landmark_heatmap(points, 5, image_size=20, backend=backend)
    (first,) = torch.autograd.grad(heatmap.sum(), points, create_graph=True)
    with pytest.raises(RuntimeError, match='backend="reference"'):
        first.sum().backward()


@pytest.mark.parametrize("grad", [False, True], ids=["without grad", "with grad"])
def test_a_forward_mode_derivative_raises(backend, grad):
    f, g = (torch.randn(2, 3, 5, 5, device=backend, requires_grad=grad) for _ in range(2))
    points = torch.rand(2, 4, 2, device=backend) * 20
    of_the_loss = functools.partial(pal_fast.pal_loss, gradient=g, landmarks=points, image_size=20)
    of_the_heatmap = functools.partial(pal_fast.landmark_heatmap, size=5, image_size=20)

    def of_the_weights(weight: Tensor, backend: str) -> Tensor:
        return of_the_loss(f, sample_weight=weight, backend=backend)

    weight = torch.rand(2, device=backend) + 0.5
    for function, point in ((of_the_loss, f), (of_the_heatmap, points), (of_the_weights, weight)):
        direction = torch.ones_like(point)
        with pytest.raises(NotImplementedError, match=r'no forward-mode derivative.*backend="reference"'):
            torch.func.jvp(functools.partial(function, backend=backend), (point,), (direction,))
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(point, direction)
            with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
                function(dual, backend=backend)
            assert function(point, backend=backend).isfinite().all(), "what has no tangent is taken"
        if not VIRTUAL:  # whose own operators have no forward mode
            assert torch.func.jvp(functools.partial(function, backend="reference"), (point,), (direction,))[1].any()


def test_the_loss_compiles_into_one_graph(backend):
    f, g = (torch.randn(2, 3, 5, 5, device=backend, requires_grad=True) for _ in range(2))
    points = torch.rand(2, 4, 2, device=backend) * 20

    def loss(f: Tensor, g: Tensor) -> Tensor:
        return pal_fast.pal_loss(f, g, landmarks=points, image_size=20, backend=backend) * 2

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for ours, eager in zip(
        torch.autograd.grad(compiled(f, g), (f, g)), torch.autograd.grad(loss(f, g), (f, g)), strict=True
    ):
        assert torch.equal(ours, eager)

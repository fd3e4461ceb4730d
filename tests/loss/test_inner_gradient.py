"""The inner gradient equals that of torch.autograd.grad, whichever way it is computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from pal_fast.attribution import inner_gradient as module
from pal_fast.attribution.inner_gradient import inner_gradient


@pytest.fixture(autouse=True)
def _probe_result_forgotten() -> Iterator[None]:
    module._run_backward.cache_clear()
    yield
    module._run_backward.cache_clear()


@pytest.fixture
def public_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each call of torch.autograd.grad by inner_gradient."""
    calls: list[int] = []
    grad = torch.autograd.grad

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return grad(*args, **kwargs)

    module._run_backward()  # probes the engine call against the public function
    monkeypatch.setattr(torch.autograd, "grad", counted)
    return calls


def derivative_errors() -> list[torch.Tensor]:
    """First and second derivatives by inner_gradient, minus those computed by hand."""
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    unused = torch.randn(5, requires_grad=True)
    seed = torch.randn(5, dtype=torch.float64)
    y = x**3
    g, none = inner_gradient(y, [x, unused], seed, create_graph=True)
    assert none is None
    assert x.grad is None
    g.sum().backward()
    return [g - 3 * x**2 * seed, x.grad - 6 * x.detach() * seed]


def assert_exact() -> None:
    for difference in derivative_errors():
        assert difference.abs().max() < 1e-12


def test_the_direct_engine_call_is_used_and_exact(public_calls):
    assert_exact()
    assert not public_calls


def test_without_create_graph_the_gradient_is_not_differentiable(public_calls):
    x = torch.randn(3, requires_grad=True)
    (g,) = inner_gradient(x**2, [x], torch.ones(3), create_graph=False)
    assert not g.requires_grad
    torch.testing.assert_close(g, 2 * x.detach())


def test_a_torch_function_mode_sees_the_public_function():
    seen = []

    class Watching(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    with Watching():
        assert_exact()
    assert torch.autograd.grad in seen


def test_inside_a_transform_the_public_function_is_used(public_calls):
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)
    y = x**3

    def function(seed: torch.Tensor) -> torch.Tensor:
        (g,) = inner_gradient(y, [x], seed, create_graph=False)
        assert g is not None
        return g

    torch.testing.assert_close(torch.vmap(function)(torch.eye(4, dtype=torch.float64)).diagonal(), 3 * x.detach() ** 2)
    assert public_calls


@pytest.mark.parametrize("other", ["gone", "raises", "wrong"])
def test_a_release_without_the_private_engine_call_falls_back_to_the_public_function(monkeypatch, other):
    run = torch.autograd.graph._engine_run_backward

    def raises(*args: Any, **kwargs: Any) -> Any:
        raise TypeError("another signature")

    def wrong(outputs: Any, seeds: Any, retain: bool, create: bool, inputs: Any, *rest: Any, **kwargs: Any) -> Any:
        return run(outputs, seeds, retain, False, inputs, *rest, **kwargs)  # without a graph

    if other == "gone":
        monkeypatch.delattr(torch.autograd.graph, "_engine_run_backward")
        monkeypatch.setattr(torch.autograd, "_engine_run_backward", run, raising=False)
    else:
        monkeypatch.setattr(torch.autograd.graph, "_engine_run_backward", raises if other == "raises" else wrong)
    assert module._run_backward() is None
    assert_exact()

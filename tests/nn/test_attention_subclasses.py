"""Which attention layers prepare_head replaces by a derived class: copies, subclasses, tracing, signatures."""

from __future__ import annotations

import copy
import inspect
import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pal_fast.nn import attention_layers, prepare_head


class Attends(nn.Module):
    """An attention with a residual, over the cells of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return x + nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def network(above: nn.Module) -> nn.Module:
    parts = {"layer": nn.Conv2d(3, 8, 4, stride=4), "cells": nn.Flatten(2), "above": Transposed(above)}
    return nn.Sequential(OrderedDict(parts))


class Transposed(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.classifier = inner, nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.inner(x.transpose(1, 2)).mean(1))


class WithLock(Attends):
    """Its state cannot be pickled without __getstate__."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, lock=threading.Lock())


class WithArguments(Attends):
    def __new__(cls, width: int) -> WithArguments:
        return super().__new__(cls)

    def __init__(self, width: int) -> None:
        super().__init__()

    def __getnewargs__(self) -> tuple[int]:
        return (8,)


class Reduced(Attends):
    def __reduce__(self) -> Any:
        return Reduced, ()


@pytest.mark.parametrize("make", [WithLock, lambda: WithArguments(8), Reduced])
@pytest.mark.parametrize("way", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_class_with_its_own_copy_protocol_is_copied_by_it(
    make: Callable[[], nn.Module], way: Callable[[Any], Any]
) -> None:
    model = network(make())
    assert "above.inner" in prepare_head(model, "layer", torch.randn(2, 3, 16, 16)).replaced
    copied = way(model)
    assert isinstance(copied.above.inner, type(make()))
    assert copied(torch.randn(2, 3, 16, 16)).shape == (2, 5)


class Registered(Attends):
    def __init_subclass__(cls, *, tag: str) -> None:
        super().__init_subclass__()


class Checkpoints(Attends):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        attend = nn.functional.scaled_dot_product_attention
        return x + checkpoint(attend, q, k, v, use_reentrant=False).transpose(1, 2).flatten(2)


def parametrized() -> nn.Module:
    module = Attends()
    module.w = nn.Parameter(torch.zeros(1))
    nn.utils.parametrize.register_parametrization(module, "w", nn.Identity())
    return module


def with_instance_forward() -> nn.Module:
    module = Attends()
    module.forward = module.forward
    return module


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@pytest.mark.parametrize(
    "make",
    [
        Registered,
        Checkpoints,
        parametrized,
        with_instance_forward,
        lambda: torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.Tanh())),
        lambda: torch.jit.trace(Attends(), torch.randn(2, 16, 8)),
        lambda: torch.fx.symbolic_trace(Attends()),
    ],
    ids=["no subclasses", "checkpoint", "parametrized", "forward", "scripted", "traced", "GraphModule"],
)
def test_layers_that_cannot_be_subclassed_safely_are_not_replaced(make: Callable[[], nn.Module]) -> None:
    model, images = network(make()), torch.randn(2, 3, 16, 16)
    before = type(model.above.inner)
    assert "above.inner" not in prepare_head(model, "layer", images).replaced
    assert type(model.above.inner) is before
    model(images).sum().backward()


def test_a_class_derived_from_the_replacement_is_restored() -> None:
    model = network(Attends())
    handle = prepare_head(model, "layer", torch.randn(2, 3, 16, 16))
    inner = model.above.inner

    class Mixed:
        """FSDP2 likewise puts its own class before the module's."""

    inner.__class__ = type("Derived", (Mixed, type(inner)), {})
    handle.restore()
    assert type(inner).__bases__ == (Mixed, Attends)
    assert "forward" not in vars(type(inner))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
def test_a_prepared_attention_can_be_traced() -> None:
    model, images = network(Attends()), torch.randn(2, 3, 16, 16)
    assert prepare_head(model, "layer", images).replaced == ("above.inner",)
    torch.testing.assert_close(torch.jit.trace(model, images)(images), model(images))


def test_the_replacement_class_keeps_the_signature_and_docstring_of_its_class() -> None:
    twin = attention_layers.attention_twin(Attends)
    assert twin is attention_layers.attention_twin(Attends)
    assert inspect.signature(twin.forward) == inspect.signature(Attends.forward)
    assert (twin.__doc__, twin.__qualname__, twin.__module__) == (Attends.__doc__, "Attends", __name__)
    module = Attends()
    module.__class__ = twin
    assert not attention_layers.attends(module)

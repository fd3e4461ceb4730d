"""A device without float64, such as Apple's MPS: no float64 tensor may be created on it.

The CPU simulates such a device: `widest_dtype` answers as for MPS, and creating a float64 tensor is an error.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pal_fast
from pal_fast import metrics, preflight, reference
from pal_fast.attribution import finite_difference


class NoFloat64(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(isinstance(value, Tensor) and value.dtype == torch.float64 for value in tree_leaves(out)):
            raise TypeError(f"{func} makes a float64 tensor, which MPS does not support")
        return out


@pytest.fixture
def mps(monkeypatch: pytest.MonkeyPatch) -> NoFloat64:
    for module in (reference, metrics, finite_difference):
        monkeypatch.setattr(module, "widest_dtype", lambda device: torch.float32)
    monkeypatch.setattr(pal_fast.dispatch, "choose", lambda requested, device: "reference")
    return NoFloat64()


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Softplus(),
        nn.Conv2d(8, 8, 3),
        nn.Softplus(),
        nn.Flatten(),
        nn.Linear(1568, 4),
    )


def test_only_mps_is_treated_as_lacking_float64():
    assert reference.widest_dtype(torch.device("mps")) == torch.float32
    assert {reference.widest_dtype(torch.device(kind)) for kind in ("cpu", "cuda", "xpu", "meta")} == {torch.float64}


@pytest.mark.parametrize("channels", ["mean", "half", "all", "each"])
def test_a_training_step_creates_no_float64(mps, seed, channels):
    model, images, points = network(), torch.randn(2, 3, 16, 16), torch.rand(2, 5, 2) * 16
    with mps, pal_fast.PALLoss(model, "0", channels=channels) as pal:
        logits = model(images)
        (pal(logits, points) + logits.square().mean()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_finite_difference_step_agrees_with_one_that_uses_float64(seed, mps, monkeypatch):
    model, images, points = network(), torch.randn(2, 3, 16, 16), torch.rand(2, 5, 2) * 16

    def gradient() -> Tensor:
        model.zero_grad()
        with pal_fast.PALLoss(model, "1", second_order="finite_difference", head=model[2:]) as pal:
            pal(model(images), points).backward()
        return model[2].weight.grad.clone()

    with mps:
        got = gradient()
    monkeypatch.setattr(finite_difference, "widest_dtype", lambda device: torch.float64)
    wanted = gradient()
    assert torch.linalg.vector_norm(got - wanted) < 1e-4 * torch.linalg.vector_norm(wanted)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_lengths_whose_squares_overflow_or_underflow_float32(mps, size, generator):
    x = torch.randn(3, 40, generator=generator) * size
    x[2] = 0
    with mps:
        got = finite_difference._length(x, (1,))
    torch.testing.assert_close(
        got.double(), torch.linalg.vector_norm(x.double(), dim=1, keepdim=True), rtol=1e-5, atol=0
    )


def test_detecting_a_constant_attribution_creates_no_float64(mps, generator):
    f = torch.randn(2, 8, 7, 7, generator=generator)
    options = pal_fast.options.AttributionOptions("grad_input", True, "mean", None)
    with mps:
        assert preflight._constant_share(f, f, options) == 0.0
        assert preflight._constant_share(torch.ones_like(f), torch.ones_like(f), options) == 1.0


def test_metrics_create_no_float64(mps, generator):
    pytest.importorskip("torchmetrics")
    maps, heatmap = torch.rand(4, 7, 7, generator=generator), torch.rand(4, 7, 7, generator=generator)
    wanted = metrics.alignment_metrics()
    wanted.update(maps, heatmap)
    got = metrics.alignment_metrics().to("cpu")
    with mps:
        got.reset()
        got.update(maps, heatmap)
        values = got.compute()
    assert {value.dtype for value in values.values()} == {torch.float32}
    for name, value in wanted.compute().items():
        torch.testing.assert_close(values[name].double(), value.double(), rtol=1e-5, atol=1e-7)

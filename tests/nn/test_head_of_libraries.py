"""prepare_head on transformers and on timm's layers: which are replaced and restored."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from support.operator_calls import OperatorCalls
from support.prepared import replaced_types
from torch import Tensor, nn

import pal_fast.nn
from pal_fast import PALLoss
from pal_fast.nn import prepare_head


class Tokens(nn.Module):
    """A block of a transformer above the attributed layer, whose norms are of the given kind."""

    def __init__(self, norm: Callable[[int], nn.Module], approximate: str) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8)
        self.norm = norm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(approximate), nn.Linear(16, 8))
        self.last = norm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.layer(tokens)
        return self.head(self.last(x + self.mlp(self.norm(x))).mean(1))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("of_timm", [False, True], ids=["PyTorch's LayerNorm", "timm's LayerNorm"])
def test_a_transformers_norms_and_gelus_are_replaced_and_restored(of_timm: bool, approximate: str) -> None:
    norm = pytest.importorskip("timm.layers", reason="timm is not installed").LayerNorm if of_timm else nn.LayerNorm
    model = Tokens(norm, approximate).double()
    tokens = torch.randn(3, 16, 6, dtype=torch.float64)
    landmarks, labels = torch.rand(3, 4, 2, dtype=torch.float64) * 16, torch.tensor([0, 1, 4])
    before = [type(module) for module in model.modules()]
    gradients = []
    for prepared in (False, True):
        model.zero_grad()
        handle = prepare_head(model, "layer", tokens) if prepared else None
        pal = PALLoss(model, "layer", image_size=16)
        pal(model(tokens), landmarks, labels=labels).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        pal.remove()
    assert handle is not None
    assert handle.replaced == ("norm", "mlp.1", "last")
    assert set(replaced_types(model).values()) == {pal_fast.nn.LayerNorm, pal_fast.nn.GELU}
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)
    handle.restore()
    assert [type(module) for module in model.modules()] == before


def test_timms_batch_norm_with_an_activation_is_replaced_and_restored() -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    model = timm.create_model("tf_efficientnet_b0", num_classes=5, drop_rate=0.0).double().train()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    landmarks, labels = torch.rand(2, 4, 2, dtype=torch.float64) * 64, torch.tensor([0, 4])
    before, state = [type(module) for module in model.modules()], copy.deepcopy(model.state_dict())
    results, calls = [], []
    for prepared in (False, True):
        model.load_state_dict(state)
        model.zero_grad()
        handle = prepare_head(model, "blocks.5", images) if prepared else None
        pal = PALLoss(model, "blocks.5")
        with OperatorCalls() as operators:
            pal(model(images), landmarks, labels=labels).backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        results.append([*gradients, *(buffer.clone() for buffer in model.buffers())])
        calls.append(len(operators.names))
        pal.remove()
    assert handle is not None
    assert "blocks.6.0.bn1" in handle.replaced
    assert "bn2.act" in handle.replaced
    assert calls[1] < calls[0] - 300
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-10)
    copy.deepcopy(model)
    io.BytesIO().write(pickle.dumps(model))
    handle.restore()
    assert [type(module) for module in model.modules()] == before


def test_timms_fast_layer_norm_is_not_replaced() -> None:
    layers = pytest.importorskip("timm.layers", reason="timm is not installed")
    model = Tokens(layers.LayerNorm, "none")
    model.norm._fast_norm = True
    handle = prepare_head(model, "layer", torch.randn(3, 16, 6))
    assert handle.replaced == ("mlp.1", "last")

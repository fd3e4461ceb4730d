"""Attention layers of any library, prepared by prepare_head: the training step stays the same."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.attention import above
from support.differences import finite
from support.networks import Block, Tokens, batch, gradient_error, judged, twin
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

import pal_fast
from pal_fast.nn import attention_layers, prepare_head

OWN = {"_AttentionBackward", "_FlashBackward"}


def of_timm() -> tuple[nn.Module, str, str]:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, num_classes=5), "blocks.0", "blocks.1.attn"


def of_timm_swin() -> tuple[nn.Module, str, str]:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    sizes = {"img_size": 32, "window_size": 4, "num_classes": 5, "drop_path_rate": 0.0}
    model = timm.create_model("swin_tiny_patch4_window7_224", **sizes)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = True  # with a learned bias; timm's default is an explicit softmax
    return model, "layers.2", "layers.3.blocks.0.attn"


def of_transformers() -> tuple[nn.Module, str, str]:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=32, num_labels=5, **sizes))
    return model, "vit.layers.0", "vit.layers.1.attention"


def of_torchvision() -> tuple[nn.Module, str, str]:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    model = models.VisionTransformer(32, 8, 3, 2, 16, 32, num_classes=5)
    nn.init.normal_(model.heads.head.weight)
    return model, "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1.self_attention"


def of_the_user() -> tuple[nn.Module, str, str]:
    return Tokens(grid=8), "blocks.0", "blocks.1"


MAKERS = [of_timm, of_timm_swin, of_transformers, of_torchvision, of_the_user]


@pytest.mark.parametrize("make", MAKERS)
def test_the_step_has_the_same_gradients_with_and_without_prepare_head(
    make: Callable[[], tuple[nn.Module, str, str]],
) -> None:
    model, layer, attention = make()
    model = model.double().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    images, labels, landmarks = batch(2, 32)
    before = [type(module) for module in model.modules()]
    gradients = []
    for prepared in (False, True):
        model.zero_grad()
        handle = prepare_head(model, layer, images) if prepared else None
        pal = pal_fast.PALLoss(model, layer)
        logits = model(images)
        logits = logits if isinstance(logits, Tensor) else logits.logits
        (nn.functional.cross_entropy(logits, labels) + pal(logits, landmarks)).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        pal.remove()
        assert bool(OWN & above(model, layer, images)) == prepared
    assert handle is not None
    assert attention in handle.replaced
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-11)
    handle.restore()
    assert [type(module) for module in model.modules()] == before


@pytest.mark.parametrize("make", MAKERS)
def test_copies_and_pickles_keep_the_prepared_attention(
    make: Callable[[], tuple[nn.Module, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, layer, attention = make()
    images = torch.randn(2, 3, 32, 32)
    prepare_head(model.eval(), layer, images)
    file = io.BytesIO()
    torch.save(model, file)
    monkeypatch.setattr(attention_layers, "_twins", {})  # as in another process
    loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    outputs = []
    for each in (model, copy.deepcopy(model), loaded):
        assert OWN & above(each, layer, images)
        assert isinstance(each.get_submodule(attention), type(model.get_submodule(attention)).__bases__[0])
        output = each(images)
        outputs.append(output if isinstance(output, Tensor) else output.logits)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


class Flat(nn.Module):
    """A network that attends in its own forward, below the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, stride=4)
        self.layer, self.classifier = nn.Linear(4, 8), nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).transpose(1, 2)
        x = nn.functional.scaled_dot_product_attention(x, x, x)
        return self.classifier(self.layer(x).tanh().mean(1))


def test_modules_whose_attention_runs_below_the_layer_are_not_replaced() -> None:
    model = Flat()
    handle = prepare_head(model, "layer", torch.randn(2, 3, 16, 16))
    assert handle.replaced == ()
    assert type(model) is Flat
    tokens = Tokens()
    handle = prepare_head(tokens, "blocks.1.out", torch.randn(2, 3, 16, 16))
    assert type(tokens.blocks[1]) is Block
    assert "blocks.2" in handle.replaced


def test_attention_without_scaled_dot_product_attention_is_not_replaced() -> None:
    model, layer, _ = of_timm()
    images = torch.randn(2, 3, 32, 32)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    assert not any(name.endswith("attn") for name in prepare_head(model, layer, images).replaced)


def test_an_error_inside_leaves_no_torch_function_mode_active() -> None:
    model = Tokens()
    prepare_head(model, "blocks.0", torch.randn(2, 3, 16, 16))

    def fail(*_: Any) -> None:
        raise KeyError("in the block")

    model.blocks[1].norm2.register_forward_hook(fail)
    with pytest.raises(KeyError):
        model(torch.randn(2, 3, 16, 16))
    assert not _get_current_function_mode_stack()


def test_a_checkpointed_head_is_recomputed_with_the_prepared_attention() -> None:
    class Checkpointed(Tokens):
        def forward(self, images: Tensor) -> Tensor:
            x = self.patches(images).flatten(2).transpose(1, 2)
            x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.position
            x = self.blocks[0](x)
            for block in self.blocks[1:]:
                x = checkpoint(block, x, use_reentrant=False)
            return self.classifier(self.norm(x)[:, 0])

    model, judge = Checkpointed().double(), Tokens().double()
    judge.load_state_dict(model.state_dict())
    images, labels, landmarks = batch()
    _, gradients = judged(judge, "blocks.0", images, labels, landmarks, view=Tokens.grid_of)
    assert len(prepare_head(model, "blocks.0", images).replaced) > 2
    pal = pal_fast.PALLoss(model, "blocks.0")
    logits = model(images)
    (nn.functional.cross_entropy(logits, labels) + pal(logits, landmarks)).backward()
    assert gradient_error(model, gradients) < 1e-9


def test_finite_differences_through_prepared_attention() -> None:
    model = Tokens().double()
    images, labels, landmarks = batch()
    _, gradients = judged(twin(model), "blocks.0", images, labels, landmarks, view=Tokens.grid_of)
    prepare_head(model, "blocks.0", images)
    pal = finite(model, "blocks.0", model.head_after(0))
    logits = model(images)
    (nn.functional.cross_entropy(logits, labels) + pal(logits, landmarks)).backward()
    assert gradient_error(model, gradients) < 1e-4


@pytest.mark.parametrize("kind", ["twin", "MultiheadAttention"])
def test_under_torch_compile_pytorchs_attention_runs(kind: str) -> None:
    x = torch.randn(2, 5, 8, requires_grad=True)
    if kind == "twin":
        module: nn.Module = Block(8)
        module.__class__ = attention_layers.attention_twin(Block)
        call: Callable[[Tensor], Tensor] = module
    else:
        module = pal_fast.nn.MultiheadAttention(8, 2, batch_first=True)

        def call(x: Tensor) -> Tensor:
            output: Tensor = module(x, x, x, need_weights=False)[0]
            return output

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), call(x))

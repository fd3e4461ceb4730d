"""Attention layers of any library, prepared by prepare_head: the training step stays the same."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.differences import finite
from support.networks import Block, Tokens, batch, gradient_error, judged, twin
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

import pal_fast
from pal_fast.attribution.graph import nodes_between
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


def above(model: nn.Module, layer: str, images: Tensor) -> set[str]:
    """The names of the autograd nodes above the layer in a step under a loss."""
    held: list[Tensor] = []
    with pal_fast.PALLoss(model, layer):
        handle = model.get_submodule(layer).register_forward_hook(lambda module, args, output: held.append(output))
        logits = model(images)
        handle.remove()
    logits = logits if isinstance(logits, Tensor) else logits.logits
    output = held[0] if isinstance(held[0], Tensor) else held[0][0]
    return {node.name() for node in nodes_between(logits.grad_fn, [output])}


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

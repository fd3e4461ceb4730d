"""prepare_head: which layers it replaces, that nothing else changes, and the cost of a step afterwards."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from support.operator_calls import OperatorCalls
from support.prepared import replaced_types
from torch import Tensor, nn
from torch.nn.utils import parametrize

import pal_fast.nn
from pal_fast import PALLoss
from pal_fast.nn import prepare_head
from pal_fast.nn.head import REPLACEMENTS


class Net(nn.Module):
    """The head's first layer is registered before the attributed one: registration order is not execution order."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.layer = nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.neck = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.head(self.layer(self.stem(images)))
        return self.neck(maps.mean((2, 3)))


ABOVE = ("head.0", "head.1", "neck.1")


def test_modules_that_run_after_the_layer_are_replaced_and_restored(images: Tensor) -> None:
    model = Net().double()
    before, state = replaced_types(model), copy.deepcopy(model.state_dict())
    handle = prepare_head(model, "layer", images)
    assert handle.ready
    assert set(handle.replaced) == set(replaced_types(model)) == set(ABOVE)
    assert type(model.head[1]) is pal_fast.nn.BatchNorm2d
    assert type(model.neck[1]) is pal_fast.nn.BatchNorm1d
    assert type(model.head[0]) is pal_fast.nn.Conv2d
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.training
    handle.restore()
    handle.restore()
    assert replaced_types(model) == before == {}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_without_an_example_the_first_forward_determines_the_order(images: Tensor) -> None:
    model = Net().double()
    handle = prepare_head(model, model.layer)
    assert not handle.ready
    assert not handle.replaced
    model(images)
    assert set(handle.replaced) == set(ABOVE)
    assert not any(module._forward_hooks for module in model.modules())


def test_with_several_layers_everything_above_the_first_is_replaced(images: Tensor) -> None:
    model = Net().double()
    handle = prepare_head(model, ["stem", "layer"], images)
    assert set(handle.replaced) == {"layer.0", "layer.1", *ABOVE}


def test_the_step_has_the_same_gradients_with_and_without_prepare_head(images: Tensor, landmarks: Tensor) -> None:
    plain = Net().double()
    prepared = copy.deepcopy(plain)
    prepare_head(prepared, "layer", images)
    for model in (plain, prepared):
        pal = PALLoss(model, "layer", backend="reference")
        for _ in range(2):
            logits = model(images)
            (logits.square().sum() + pal(logits, landmarks)).backward()
    for (name, got), wanted in zip(prepared.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad, rtol=1e-8, atol=1e-10, msg=name)
    for (name, got), wanted in zip(prepared.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(got, wanted, msg=name)


@pytest.mark.parametrize("first", ["restored", "unparametrized"])
def test_a_layer_parametrized_after_preparation_is_restored(first: str, images: Tensor) -> None:
    model = Net().double()
    handle = prepare_head(model, "layer", images)
    for name in ("0", "1"):
        parametrize.register_parametrization(model.head.get_submodule(name), "weight", nn.Tanh())
    wanted = model.eval()(images)
    copied = copy.deepcopy(model)
    steps = [handle.restore, lambda: remove_parametrizations(model)]
    for step in steps if first == "restored" else reversed(steps):
        step()
        torch.testing.assert_close(model(images), wanted)
    assert [type(model.head[i]) for i in range(2)] == [nn.Conv2d, nn.BatchNorm2d]
    assert isinstance(copied.head[0], pal_fast.nn.Conv2d), "the copy stays prepared"


def remove_parametrizations(model: Net) -> None:
    for name in ("0", "1"):
        parametrize.remove_parametrizations(model.head.get_submodule(name), "weight")


def test_subclasses_are_not_replaced(images: Tensor) -> None:
    class Special(nn.BatchNorm2d):
        pass

    model = Net().double()
    model.head[1] = Special(8).double()
    handle = prepare_head(model, "layer", images)
    assert "head.1" not in handle.replaced
    assert type(model.head[1]) is Special


def test_copies_and_pickles_of_a_prepared_model_work(images: Tensor) -> None:
    model = Net().double()
    waiting = prepare_head(model, "layer")
    twin = copy.deepcopy(model)
    twin(images)
    assert not waiting.ready, "a copy's forward must not prepare the original"
    model(images)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False).eval()
    torch.testing.assert_close(loaded(images), model.eval()(images))
    assert set(replaced_types(loaded)) == set(ABOVE)


def test_an_exported_program_needs_pal_fast_until_the_model_is_restored(images: Tensor) -> None:
    model = Net().double().eval()

    def operators() -> str:
        return str({node.target for node in torch.export.export(model, (images,)).graph.nodes})

    with prepare_head(model, "layer", images):
        assert "pal_fast.batch_norm" in operators()
    assert "pal_fast" not in operators()


def test_invalid_calls_raise_and_leave_the_model_unchanged(images: Tensor) -> None:
    model = Net().double()
    model.unused = nn.Conv2d(1, 1, 1)
    with pytest.raises(RuntimeError, match="did not run layer 'unused'"):
        prepare_head(model, "unused", images)
    with pytest.raises(ValueError, match="not a module"):
        prepare_head(model, "layr")
    with pytest.raises(TypeError, match="model must be"):
        prepare_head("model", "layer")  # type: ignore[arg-type]
    assert not replaced_types(model)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_attribution_pass_recomputes_nothing_and_computes_no_weight_gradient(images: Tensor) -> None:
    model = Net().double()
    prepare_head(model, "layer", images)
    kept = []
    model.layer.register_forward_hook(lambda module, args, output: kept.append(output))
    with OperatorCalls() as forward:
        logits = model(images)
    with OperatorCalls() as attribution:
        torch.autograd.grad(logits.sum(), kept[-1], create_graph=True)
    assert forward.names.count("aten.convolution.default") == 3
    assert "aten.convolution.default" not in attribution.names
    assert "pal_fast.batch_norm.default" not in attribution.names
    assert "pal_fast.batch_norm_statistics.default" not in attribution.names
    assert attribution.names.count("aten.convolution_backward.default") == 1
    assert attribution.wanted == [(True, False, False)]
    assert attribution.names.count("pal_fast.batch_norm_backward.default") == 2


def test_a_prepared_step_calls_far_fewer_operators(images: Tensor, landmarks: Tensor) -> None:
    counts = []
    for prepare in (False, True):
        model = Net().double()
        if prepare:
            prepare_head(model, "layer", images)
        pal = PALLoss(model, "layer", backend="reference")
        with OperatorCalls() as operators:
            logits = model(images)
            (logits.square().sum() + pal(logits, landmarks)).backward()
        counts.append(len(operators.names))
    assert counts[1] < counts[0] - 2 * 60  # two BatchNorms, each well over 60 operators in its second derivative


@pytest.mark.parametrize("twin", REPLACEMENTS.values(), ids=lambda twin: twin.__name__)
def test_every_replacement_runs_on_a_device_without_autocast(twin: type[nn.Module]) -> None:
    arguments = {"BatchNorm1d": (4,), "BatchNorm2d": (4,), "Conv2d": (4, 4, 3), "LayerNorm": (8,)}
    with torch.device("meta"):
        if twin.__name__ == "MultiheadAttention":
            module, shape = twin(8, 2), (2, 4, 8)
        else:
            module = twin(*arguments.get(twin.__name__, ()))
            shape = (2, 4, 8) if twin.__name__ == "BatchNorm1d" else (2, 4, 8, 8)
        input = torch.randn(shape, requires_grad=True)
    output = module(input, input, input)[0] if twin.__name__ == "MultiheadAttention" else module(input)
    (grad,) = torch.autograd.grad(output.sum(), input, create_graph=True)
    assert grad.shape == input.shape


@pytest.mark.parametrize("training", [True, False], ids=["train", "frozen"])
def test_a_frozen_batch_norm_in_a_training_model_stays_frozen(training: bool, images: Tensor) -> None:
    model = Net().double()
    prepare_head(model, "layer", images)
    model.head[1].train(training)
    before = model.head[1].running_mean.clone()
    model(images)
    assert torch.equal(before, model.head[1].running_mean) != training

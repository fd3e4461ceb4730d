"""`check` and `attribute` run the model themselves, whatever it accepts and returns: objects, dicts and tuples, too."""

from __future__ import annotations

from collections import UserDict
from typing import Any, NamedTuple

import pytest
import torch
from support.networks import SmallNet, batch
from torch import Tensor, nn

import pal_fast


class Returning(SmallNet):
    """Returns its logits as `form` packs them."""

    form: Any = None

    def forward(self, images: Tensor) -> Any:
        features = self.middle(self.stem(images))
        return type(self).form(self.head(features), features)


class Output:
    def __init__(self, logits):
        self.logits = logits


class TwoHeads(NamedTuple):
    logits: Tensor
    aux_logits: Tensor


FORMS = {
    "object": lambda z, f: Output(z),
    "named tuple": lambda z, f: TwoHeads(z, f.mean((2, 3))),
    "dict with logits": lambda z, f: {"loss": z.mean(), "logits": z, "hidden": f},
    "user dict": lambda z, f: UserDict(logits=z),
    "dict of one": lambda z, f: {"out": z},
    "tuple of one": lambda z, f: (z,),
    "list with others": lambda z, f: [z, None, "name"],
}


@pytest.mark.parametrize("form", FORMS)
def test_the_logits_are_found_in_an_unambiguous_output(form):
    model = Returning()
    images, _, _ = batch(dtype=torch.float32)
    Returning.form = staticmethod(lambda z, f: z)
    wanted, wanted_logits = pal_fast.attribute(model, "middle", images)
    Returning.form = staticmethod(FORMS[form])
    maps, logits = pal_fast.attribute(model, "middle", images)
    assert torch.equal(maps, wanted)
    assert torch.equal(logits, wanted_logits)
    assert pal_fast.PALLoss(model, "middle").check(images).problems == []


@pytest.mark.parametrize(
    "form", [lambda z, f: (z, f), lambda z, f: {"out": z, "aux": f}, lambda z, f: None, lambda z, f: {"logits": [z, z]}]
)
def test_an_ambiguous_output_is_refused_and_the_error_suggests_output(form):
    model = Returning()
    Returning.form = staticmethod(form)
    images, _, _ = batch(dtype=torch.float32)
    for run in (pal_fast.PALLoss(model, "middle").check, lambda x: pal_fast.attribute(model, "middle", x)):
        with pytest.raises(TypeError, match=r"the model returned .*output="):
            run(images)


def test_the_output_argument_selects_the_logits():
    model = Returning()
    Returning.form = staticmethod(lambda z, f: (f, {"scores": z}))
    images, _, _ = batch(dtype=torch.float32)

    def output(returned):
        return returned[1]["scores"]

    maps, logits = pal_fast.attribute(model, "middle", images, output=output)
    assert maps.abs().max() > 0
    assert logits.shape == (4, 5)
    assert pal_fast.PALLoss(model, "middle").check(images, output=output).problems == []
    with pytest.raises(TypeError, match=r"output must be a callable .*got str 'logits'"):
        pal_fast.attribute(model, "middle", images, output="logits")
    with pytest.raises(TypeError, match="output must be a callable"):
        pal_fast.PALLoss(model, "middle").check(images, output="logits")


class TakingNames(SmallNet):
    def forward(self, pixel_values: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(pixel_values * scale)


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_a_dict_of_inputs_is_passed_as_keyword_arguments(kind):
    model = TakingNames()
    images, _, _ = batch(dtype=torch.float32)
    given = kind(pixel_values=images, scale=2.0)
    wanted, _ = pal_fast.attribute(model, "middle", images * 2)
    torch.testing.assert_close(pal_fast.attribute(model, "middle", given)[0], wanted)
    pal = pal_fast.PALLoss(model, "middle")
    report = pal.check(given)
    assert report.problems == []
    assert report.layers[0].shape == (4, 8, 8, 8)


def test_a_dict_of_inference_mode_tensors_is_accepted():
    model = TakingNames()
    with torch.inference_mode():
        images = {"pixel_values": torch.randn(2, 3, 16, 16)}
        maps, _ = pal_fast.attribute(model, "middle", images)
    assert maps.shape == (2, 8, 8)


def test_a_hugging_face_model_works_with_check_attribute_and_the_doctor(monkeypatch, capsys):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    import sys
    import types

    from pal_fast.cli import main

    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.ViTConfig(image_size=32, patch_size=8, num_labels=5, **sizes)
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config)
    images = torch.randn(2, 3, 32, 32)
    for given in (images, {"pixel_values": images, "labels": torch.tensor([1, 2])}):
        maps, logits = pal_fast.attribute(model, "vit.layers.1", given)
        assert maps.shape == (2, 4, 4)
        assert logits.shape == (2, 5)
        assert pal_fast.PALLoss(model, "vit.layers.1").check(given).problems == []
    module = types.ModuleType("hugging_networks")
    module.vit = lambda: model
    monkeypatch.setitem(sys.modules, "hugging_networks", module)
    assert main(["doctor", "hugging_networks:vit", "--size", "32", "--layer", "vit.layers.1"]) == 0
    assert "layer vit.layers.1: (2, 24, 4, 4) from tokens, 1 + 4 x 4" in capsys.readouterr().out


def test_the_loss_itself_accepts_the_logits_tensor_only():
    model = Returning()
    Returning.form = staticmethod(FORMS["object"])
    images, _, landmarks = batch(dtype=torch.float32)
    pal = pal_fast.PALLoss(model, "middle")
    with pytest.raises(TypeError, match=r"logits must be a tensor .*pass its \.logits"):
        pal(model(images), landmarks)
    pal(model(images).logits, landmarks)


def test_check_passes_keyword_inputs_and_output_through_a_wrapper():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = TakingNames()

        def forward(self, **inputs: Any) -> Any:
            return {"first": self.network(**inputs), "second": torch.zeros(3)}

    report = pal_fast.PALLoss(Wrapped(), "network.middle").check(
        {"pixel_values": batch(dtype=torch.float32)[0]}, output=lambda out: out["first"]
    )
    assert report.problems == []


class Pair(NamedTuple):
    features: Tensor
    number: int


class PairOf(nn.Module):
    """A layer that returns more than its map, as `form` packs it."""

    def __init__(self, form):
        super().__init__()
        self.convolution, self.form = nn.Conv2d(3, 4, 3), form

    def forward(self, x):
        return self.form(self.convolution(x), 3)


@pytest.mark.parametrize("form", [Pair, lambda *values: values, lambda *values: [*values]])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_layer_that_returns_several_values_keeps_its_return_type(form, frozen):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.top = PairOf(form), nn.Conv2d(4, 5, 3)

        def forward(self, images):
            returned = self.layer(images)
            assert type(returned) is type(form(images, 3))
            features, number = returned
            return self.top(features * number).tanh().mean((2, 3))

    model = Net()
    model.layer.requires_grad_(not frozen)
    images, _, landmarks = batch(dtype=torch.float32)
    pal_fast.PALLoss(model, "layer")(model(images), landmarks).backward()
    assert model.top.weight.grad.any()

"""A loss on a model with too much of it compiled: rejected with a remedy, or exact."""

from __future__ import annotations

import pytest
import torch
from support.networks import SmallNet, batch
from torch import nn
from torch._dynamo.testing import CompileCounter

import pal_fast
import pal_fast.nn

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def test_a_compiled_model_is_refused_with_a_remedy():
    model = SmallNet()
    images, _, landmarks = batch(dtype=torch.float32)
    pal = pal_fast.PALLoss(model, "middle")
    compiled = torch.compile(model, backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"compile_body.*compile_step"):
        pal(compiled(images), landmarks)


def test_a_compiled_head_is_refused_with_a_remedy():
    model = SmallNet()
    images, _, landmarks = batch(dtype=torch.float32)
    pal = pal_fast.PALLoss(model, "middle")
    model.top = torch.compile(model.top, backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"layer 'middle' cannot be attributed: .*compile_body"):
        pal(model(images), landmarks)


def test_a_step_compiled_without_compile_step_is_refused_with_a_remedy():
    model = SmallNet()
    images, labels, landmarks = batch(dtype=torch.float32)
    pal = pal_fast.PALLoss(model, "middle")

    def step():
        logits = model(images)
        (nn.functional.cross_entropy(logits, labels) + pal(logits, landmarks)).backward()

    with pytest.raises(RuntimeError, match=r"layer 'middle' cannot be attributed: .*compile_step"):
        torch.compile(step, backend="aot_eager")()


def test_hooks_added_after_the_first_compiled_call_are_detected():
    model = SmallNet()
    images, _, landmarks = batch(dtype=torch.float32)
    compiled = torch.compile(model, backend="aot_eager")
    compiled(images)
    pal = pal_fast.PALLoss(model, "middle")
    with pytest.raises(RuntimeError, match=r"after the first compiled call.*compile_body"):
        pal(compiled(images), landmarks)


def test_check_detects_hooks_added_after_the_first_call_of_a_model_compiled_in_place():
    model = SmallNet()
    model.compile(backend="aot_eager")
    images, _, _ = batch(dtype=torch.float32)
    model(images)
    with pytest.raises(RuntimeError, match=r"after the first compiled call.*compile_body"):
        pal_fast.PALLoss(model, "middle").check(images)


@pytest.mark.parametrize("options", [{}, {"attribution": "grad"}, {"second_order": "finite_difference", "head": abs}])
def test_constructing_a_loss_on_a_compiled_model_is_refused_and_the_model_still_runs(options):
    model = torch.compile(SmallNet(), backend="aot_eager")
    images, _, _ = batch(dtype=torch.float32)
    with pytest.raises(TypeError, match=r"model must not be the result of torch\.compile.*compile_body.*compile_step"):
        pal_fast.PALLoss(model, "middle", **options)
    assert model(images).shape == (4, 5)


@pytest.mark.parametrize("layer", ["middle", "_orig_mod.middle"])
def test_an_activation_loss_works_on_a_compiled_model(layer):
    model = SmallNet()
    compiled = torch.compile(model, backend="aot_eager")
    images, _, landmarks = batch(dtype=torch.float32)
    pal = pal_fast.PALLoss(compiled, layer, attribution="activation")
    for mode in (compiled.eval, compiled.train):
        mode()
        with torch.no_grad():
            compiled(images)
    got = pal(compiled(images), landmarks)
    pal.remove()
    with pal_fast.PALLoss(model, "middle", attribution="activation") as eager:
        wanted = eager(model(images), landmarks)
    torch.testing.assert_close(got, wanted)
    got.backward()


@pytest.mark.parametrize("how", ["torch.compile(model)", "model.compile()"])
def test_attribute_on_a_compiled_model_is_exact_and_leaves_it_compiled(how):
    model = SmallNet().eval()
    images, _, _ = batch(dtype=torch.float32)
    wanted, _ = pal_fast.attribute(model, "middle", images)
    graphs = CompileCounter()
    if how == "model.compile()":
        model.compile(backend=graphs)
    else:
        model = torch.compile(model, backend=graphs)
    model(images)
    torch.testing.assert_close(pal_fast.attribute(model, "middle", images)[0], wanted)
    model(images)
    assert graphs.frame_count == 1

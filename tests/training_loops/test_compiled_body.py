"""Compiled layers below the attributed one and an eager head: gradients, copies, pickles."""

from __future__ import annotations

import copy
import inspect
import io

import pytest
import torch
from support.compare import relative_error
from support.compiling import compiled_step, of_a_step
from support.networks import SmallNet, batch, batch_off_kinks, gradient_error, judged, twin
from torch import nn
from torch._dynamo.testing import CompileCounter

import pal_fast
import pal_fast.nn
from pal_fast.compiled import compile_body

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def test_a_compiled_body_with_an_eager_head_matches_the_double_backward():
    model = SmallNet().double()
    images, labels, landmarks = batch()
    wanted, gradients = judged(twin(model), "middle", images, labels, landmarks)
    statistics = model.stem[1].running_mean.clone()
    pal = pal_fast.PALLoss(model, "middle")
    assert compile_body(model, "middle", images, backend="aot_eager") == ("stem", "middle")
    assert torch.equal(model.stem[1].running_mean, statistics)
    for _ in range(2):
        model.zero_grad()
        logits = model(images)
        loss = nn.functional.cross_entropy(logits, labels) + pal(logits, landmarks)
        loss.backward()
        assert relative_error(loss, wanted) < 1e-10
        assert gradient_error(model, gradients) < 1e-10


def test_a_body_compiled_by_inductor_matches_the_double_backward():
    model = SmallNet()
    images, labels, landmarks = batch_off_kinks(model)
    wanted, gradients = judged(twin(model), "middle", images, labels, landmarks)
    pal = pal_fast.PALLoss(model, "middle")
    compile_body(model, "middle", images)
    logits = model(images)
    loss = nn.functional.cross_entropy(logits, labels) + pal(logits, landmarks)
    loss.backward()
    assert relative_error(loss, wanted) < 1e-5
    assert gradient_error(model, gradients) < 1e-4


@pytest.mark.parametrize("of_the_copy", [False, True], ids=["once", "a copy of a copy"])
def test_a_copy_of_a_model_with_a_compiled_body_runs_and_trains_its_own_weights(of_the_copy):
    model = SmallNet().double()
    images, labels, landmarks = batch()
    _, gradients = judged(twin(model), "middle", images, labels, landmarks)
    pal = pal_fast.PALLoss(model, "middle")
    graphs = CompileCounter()
    compile_body(model, "middle", images, backend=graphs)
    other = copy.deepcopy(copy.deepcopy(pal) if of_the_copy else pal)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    logits = other.model(images)
    (nn.functional.cross_entropy(logits, labels) + other(logits, landmarks)).backward()
    assert gradient_error(other.model, gradients) < 1e-10
    assert all(parameter.grad is None for parameter in model.parameters())
    assert graphs.frame_count == 2, "stem and middle of the copy"


def test_a_pickled_model_with_a_compiled_body_is_loaded_uncompiled():
    model = SmallNet().double().eval()
    images, _, _ = batch()
    wanted = model(images)
    graphs = CompileCounter()
    compile_body(model, "middle", images, backend=lambda module, inputs: graphs(module, inputs))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for restored in (loaded, copy.deepcopy(loaded)):
        torch.testing.assert_close(restored(images), wanted)
    assert graphs.frame_count == 0


def test_a_compiled_forward_keeps_the_signature_of_the_original():
    model = SmallNet()
    wanted = inspect.signature(model.stem.forward)
    compile_body(model, "middle", batch(dtype=torch.float32)[0], backend="eager")
    assert inspect.signature(model.stem.forward) == wanted


@of_a_step
def test_a_step_compiles_over_a_compiled_body():
    model = SmallNet().double()
    images, labels, landmarks = batch()
    wanted, gradients = judged(twin(model), "middle", images, labels, landmarks)
    compile_body(model, "middle", images, backend="aot_eager")
    loss = compiled_step(model, "middle", "aot_eager")(images, labels, landmarks)
    loss.backward()
    assert relative_error(loss, wanted) < 1e-10
    assert gradient_error(model, gradients) < 1e-10

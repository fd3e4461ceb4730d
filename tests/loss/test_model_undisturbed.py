"""The model is unchanged: same state_dict, and nothing is captured when nothing is trained."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from support.networks import Scriptable, SmallNet, hooks
from torch import nn

import pal_fast


def test_no_parameter_and_no_state_dict_key_is_added(model):
    keys, count = list(model.state_dict()), len(list(model.parameters()))
    pal = pal_fast.PALLoss(model, "middle")
    assert list(model.state_dict()) == keys
    assert len(list(model.parameters())) == count
    assert not list(pal.parameters())
    assert not pal.state_dict()
    assert not list(pal.children())


def test_a_step_runs_the_model_once(model, data):
    images, _, landmarks = data
    pal = pal_fast.PALLoss(model, ["stem", "middle"])
    runs = dict.fromkeys(("stem", "middle", "top", "classifier"), 0)
    for name in runs:
        model.get_submodule(name).register_forward_hook(
            lambda m, a, out, name=name: runs.update({name: runs[name] + 1})
        )
    pal(model(images), landmarks).backward()
    assert set(runs.values()) == {1}, runs


def test_between_forwards_a_model_has_hooks_at_the_layer_and_on_itself_only(model, data):
    images, _, landmarks = data
    pal = pal_fast.PALLoss(model, "middle")
    for _ in range(2):
        for module in model.modules():
            assert bool(hooks(module)) == (module is model or module is model.middle)
        pal(model(images), landmarks).backward()


@pytest.mark.parametrize("export", ["trace", "export"])
def test_a_model_under_a_loss_can_be_traced_and_exported(export, data):
    model, images = Scriptable().eval(), data[0]
    pal = pal_fast.PALLoss(model, "2")
    made = torch.jit.trace(model, images) if export == "trace" else torch.export.export(model, (images,)).module()
    torch.testing.assert_close(made(images), model(images))
    pal.remove()


def test_the_error_from_scripting_a_model_under_a_loss_suggests_remove(data):
    model = Scriptable()
    pal = pal_fast.PALLoss(model, "2")
    with pytest.raises(AttributeError, match=r"pal\.remove\(\)"):
        torch.jit.script(model)
    assert not any(hasattr(hook, "__name__") for _, hook in hooks(model) if callable(hook))
    pal(model(data[0]), data[2]).backward()


def test_in_eval_mode_and_without_gradients_nothing_is_captured(model, data):
    images, _, landmarks = data
    pal = pal_fast.PALLoss(model, "middle")
    model.eval()
    logits = model(images)
    assert pal._capture.captured[0].output is None
    with pytest.raises(RuntimeError, match="eval mode"):
        pal(logits, landmarks)
    model.train()
    with torch.no_grad():
        logits = model(images)
        assert pal._capture.captured[0].output is None
        with pytest.raises(RuntimeError, match="grad mode is off"):
            pal(logits, landmarks)
    with pytest.raises(RuntimeError, match="has not run with gradients"):
        pal(logits, landmarks)


def test_a_call_without_gradients_frees_the_captured_tensors(model, data):
    images, _, landmarks = data
    pal = pal_fast.PALLoss(model, "middle")
    logits = model(images)
    with torch.no_grad(), pytest.raises(RuntimeError, match="grad mode is off"):
        pal(logits, landmarks)
    assert pal._capture.captured[0].output is None


@pytest.mark.parametrize("evaluating", [False, True], ids=["train mode", "eval mode"])
def test_an_evaluation_between_forward_and_loss_changes_nothing(model, data, evaluating):
    """For instance, to make pseudo-labels from another view."""
    images, _, landmarks = data
    pal = pal_fast.PALLoss(model, "middle")
    wanted = pal(model(images), landmarks)
    logits = model(images)
    model.train(not evaluating)
    with torch.no_grad():
        model(torch.randn(2, 3, 40, 40))
    model.train()
    assert torch.equal(pal(logits, landmarks), wanted)


def test_remove_and_the_context_manager_remove_the_hooks(model, data):
    images, _, landmarks = data
    with pal_fast.PALLoss(model, "middle") as pal:
        pal(model(images), landmarks)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    with pytest.raises(RuntimeError, match="removed"):
        pal(model(images), landmarks)
    pal.remove()


def test_captured_tensors_are_freed_after_the_loss_and_by_the_next_forward(model, data):
    images, _, landmarks = data
    pal = pal_fast.PALLoss(model, "middle")
    held = []
    model.middle.register_forward_hook(lambda m, a, out: held.append(weakref.ref(out)))
    logits = model(images)
    loss = pal(logits, landmarks)
    loss.backward()
    del logits, loss
    gc.collect()
    assert held[0]() is None
    model(images)
    model(images)
    gc.collect()
    assert held[1]() is None
    assert held[2]() is not None
    pal.remove()
    gc.collect()
    assert held[2]() is None


def test_the_repr_shows_the_layer_and_the_options(model):
    text = repr(pal_fast.PALLoss(model, "middle", channels="half"))
    assert "middle" in text
    assert "half" in text


def test_a_model_with_scripted_submodules_trains(data):
    images, _, landmarks = data
    model = SmallNet(act=lambda: torch.jit.script(nn.Tanh()))
    pal = pal_fast.PALLoss(model, "middle")
    pal(model(images), landmarks).backward()
    assert model.stem[0].weight.grad.norm() > 0

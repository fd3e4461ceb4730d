"""The model is the same model: same state_dict, copies and pickles; nothing is captured when nothing is trained."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import weakref

import pytest
import torch
from support.networks import SmallNet, batch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import pal_fast


@pytest.fixture
def model():
    return SmallNet()


@pytest.fixture
def data():
    return batch(dtype=torch.float32)


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


def test_copies_and_pickles_of_the_model_carry_no_live_hook(model, data):
    images, _, landmarks = data
    pal = pal_fast.PALLoss(model, "middle")
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    twins.append(torch.load(stream, weights_only=False))
    for twin in twins:
        twin(images)
        with pytest.raises(RuntimeError, match="has not run"):
            pal(twin(images), landmarks)
    pal(model(images), landmarks).backward()


def hooks(model):
    """The modules' hooks, and what the modules remember of how to call them."""
    return [
        entry
        for module in model.modules()
        for name, entries in vars(module).items()
        if name.startswith(("_forward_hooks", "_forward_pre_hooks"))
        for entry in entries.items()
    ]


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda model: AveragedModel(model).module, lambda model: copy.deepcopy(copy.deepcopy([model]))[0]],
    ids=["deepcopy", "AveragedModel", "deepcopy of a deepcopy"],
)
def test_a_deep_copy_of_the_model_has_none_of_the_hooks(model, data, steps, copied):
    images, _, landmarks = data
    pal = pal_fast.PALLoss(model, ["stem", "middle"])
    for _ in range(steps):
        pal(model(images), landmarks).backward()
    before = hooks(model)
    twin = copied(model)
    assert not hooks(twin)
    assert hooks(model) == before
    assert twin.training == model.training
    pal(model(images), landmarks).backward()
    torch.testing.assert_close(twin(images), model(images))


def test_a_deep_copy_of_a_checkpointed_model_has_none_of_the_hooks(data):
    class Checkpointed(SmallNet):
        def forward(self, images):
            return self.head(checkpoint(self.middle, self.stem(images), use_reentrant=False))

    images, _, landmarks = data
    model = Checkpointed()
    pal = pal_fast.PALLoss(model, "middle")
    pal(model(images), landmarks).backward()
    assert hooks(model.middle[1]), "its recomputation is guarded"
    assert not hooks(copy.deepcopy(model))


def test_a_deep_copy_of_a_model_whose_head_waits_to_be_prepared_has_none_of_the_hooks(model):
    head = pal_fast.nn.prepare_head(model, "middle")
    assert not hooks(copy.deepcopy(model))
    assert not head.ready


def test_a_deep_copy_keeps_the_user_s_own_hooks(model, data):
    pal = pal_fast.PALLoss(model, "middle")
    seen = []
    model.middle.register_forward_hook(lambda module, args, kwargs, output: seen.append(module), with_kwargs=True)
    model.middle.register_forward_pre_hook(lambda module, args: None)
    twin = copy.deepcopy(model)
    pal.remove()
    assert len(hooks(twin)) == len(hooks(model)) == 3
    twin(data[0])
    assert seen == [twin.middle]


def test_a_deep_copy_of_a_model_and_its_loss_has_the_hooks_of_the_copied_loss_alone(model, data):
    pal = pal_fast.PALLoss(model, "middle")
    twin = copy.deepcopy(nn.ModuleDict({"model": model, "pal": pal}))
    assert len(hooks(twin["model"])) == len(hooks(model))
    twin["pal"].remove()
    assert not hooks(twin["model"])


def test_between_forwards_a_model_has_hooks_at_the_layer_and_on_itself_only(model, data):
    images, _, landmarks = data
    pal = pal_fast.PALLoss(model, "middle")
    for _ in range(2):
        for module in model.modules():
            assert bool(hooks(module)) == (module is model or module is model.middle)
        pal(model(images), landmarks).backward()


class Scriptable(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(784, 5))


def test_a_deep_copy_can_be_scripted_before_it_has_run(data):
    model = Scriptable()
    pal = pal_fast.PALLoss(model, "2")
    twin = copy.deepcopy(model).eval()
    torch.testing.assert_close(torch.jit.script(twin)(data[0]), twin(data[0]))
    pal.remove()
    torch.jit.script(model)


@pytest.mark.parametrize("export", ["trace", "export"])
def test_a_model_under_a_loss_can_be_traced_and_exported(export, data):
    model, images = Scriptable().eval(), data[0]
    pal = pal_fast.PALLoss(model, "2")
    made = torch.jit.trace(model, images) if export == "trace" else torch.export.export(model, (images,)).module()
    torch.testing.assert_close(made(images), model(images))
    pal.remove()


def test_scripting_a_model_under_a_loss_says_what_to_do(data):
    model = Scriptable()
    pal = pal_fast.PALLoss(model, "2")
    with pytest.raises(AttributeError, match=r"pal\.remove\(\)"):
        torch.jit.script(model)
    assert not any(hasattr(hook, "__name__") for _, hook in hooks(model) if callable(hook))
    pal(model(data[0]), data[2]).backward()


def test_a_pickled_model_opens_without_pal_fast(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(32, 2))
    pal = pal_fast.PALLoss(model, "0")
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(model))
    code = (
        "import pickle, sys, torch; sys.modules['pal_fast'] = None; "
        f"m = pickle.load(open({str(tmp_path / 'model.pkl')!r}, 'rb')); print(m(torch.zeros(1, 3, 4, 4)).shape)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert pal.layers == ("0",)


def test_a_copied_loss_works_on_the_copied_model(model, data):
    images, _, landmarks = data
    trainer = nn.ModuleDict({"model": model, "pal": pal_fast.PALLoss(model, "middle", weight=2.0)})
    first = trainer["pal"](model(images), landmarks)
    twin = copy.deepcopy(trainer)
    assert twin["pal"].model is twin["model"]
    torch.testing.assert_close(twin["pal"](twin["model"](images), landmarks), first)
    thawed = pickle.loads(pickle.dumps(trainer))
    torch.testing.assert_close(thawed["pal"](thawed["model"](images), landmarks), first)


def test_a_loss_on_the_output_of_the_model_itself_is_copied_and_pickled():
    body = SmallNet().stem
    images, _, landmarks = batch(dtype=torch.float32)
    both = nn.ModuleDict({"body": body, "pal": pal_fast.PALLoss(body, body)})

    def loss_of(both):
        return both["pal"](both["body"](images).mean((2, 3)), landmarks)

    first = loss_of(both)
    assert first != 0
    for other in (copy.deepcopy(both), pickle.loads(pickle.dumps(both))):
        assert other["pal"].layers == both["pal"].layers
        torch.testing.assert_close(loss_of(other), first)


def test_a_copy_of_the_loss_leaves_no_hook_on_the_model(model):
    pal = pal_fast.PALLoss(model, "middle")
    before = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    copy.deepcopy(pal)
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == before


def test_a_copied_loss_takes_its_head_from_the_copied_model():
    model = SmallNet(act=nn.GELU)
    pal = pal_fast.PALLoss(model, "middle", second_order="finite_difference", head=model.head)
    trainer = nn.ModuleDict({"model": model, "pal": pal})
    for twin in (copy.deepcopy(trainer), pickle.loads(pickle.dumps(trainer))):
        assert twin["pal"]._engine.head.__self__ is twin["model"]


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


def test_a_call_without_gradients_lets_go_of_what_was_captured(model, data):
    images, _, landmarks = data
    pal = pal_fast.PALLoss(model, "middle")
    logits = model(images)
    with torch.no_grad(), pytest.raises(RuntimeError, match="grad mode is off"):
        pal(logits, landmarks)
    assert pal._capture.captured[0].output is None


def test_an_evaluation_between_forward_and_loss_is_noticed(model, data):
    images, _, landmarks = data
    pal = pal_fast.PALLoss(model, "middle")
    logits = model(images)
    with torch.no_grad():
        model(images)
    with pytest.raises(RuntimeError, match="has not run with gradients"):
        pal(logits, landmarks)


def test_remove_and_with_take_the_hooks_off(model, data):
    images, _, landmarks = data
    with pal_fast.PALLoss(model, "middle") as pal:
        pal(model(images), landmarks)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    with pytest.raises(RuntimeError, match="removed"):
        pal(model(images), landmarks)
    pal.remove()


def test_a_copy_of_a_removed_loss_is_removed(model):
    pal = pal_fast.PALLoss(model, "middle")
    pal.remove()
    for twin in (copy.deepcopy(pal), pickle.loads(pickle.dumps(pal))):
        assert not twin._capture.handles
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in twin.model.modules())


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


def test_the_repr_names_what_is_computed(model):
    text = repr(pal_fast.PALLoss(model, "middle", channels="half"))
    assert "middle" in text
    assert "half" in text


def test_a_model_with_a_scripted_part_is_served(data):
    images, _, landmarks = data
    model = SmallNet(act=lambda: torch.jit.script(nn.Tanh()))
    pal = pal_fast.PALLoss(model, "middle")
    pal(model(images), landmarks).backward()
    assert model.stem[0].weight.grad.norm() > 0

"""Copies and pickles of a model and its loss: copies of the model have no hooks, copies of the loss their own."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from support.networks import Scriptable, SmallNet, batch, hooks
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import pal_fast
from pal_fast.capture.hook import Hook


def test_copies_and_pickles_of_the_model_carry_no_live_hook(model, data):
    images, _, landmarks = data
    pal = pal_fast.PALLoss(model, "middle")
    clones = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    clones.append(torch.load(stream, weights_only=False))
    for clone in clones:
        clone(images)
        with pytest.raises(RuntimeError, match="has not run"):
            pal(clone(images), landmarks)
    pal(model(images), landmarks).backward()


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
    clone = copied(model)
    assert not hooks(clone)
    assert hooks(model) == before
    assert clone.training == model.training
    pal(model(images), landmarks).backward()
    torch.testing.assert_close(clone(images), model(images))


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


def test_a_deep_copy_of_a_model_with_a_pending_prepare_head_has_none_of_the_hooks(model):
    head = pal_fast.nn.prepare_head(model, "middle")
    assert not hooks(copy.deepcopy(model))
    assert not head.ready


def test_a_deep_copy_keeps_user_hooks(model, data):
    pal = pal_fast.PALLoss(model, "middle")
    seen = []
    model.middle.register_forward_hook(lambda module, args, kwargs, output: seen.append(module), with_kwargs=True)
    model.middle.register_forward_pre_hook(lambda module, args: None)
    clone = copy.deepcopy(model)
    pal.remove()
    assert len(hooks(clone)) == len(hooks(model)) == 3
    clone(data[0])
    assert seen == [clone.middle]


def test_a_deep_copy_of_a_model_and_its_loss_has_the_hooks_of_the_copied_loss_alone(model, data):
    pal = pal_fast.PALLoss(model, "middle")
    clone = copy.deepcopy(nn.ModuleDict({"model": model, "pal": pal}))
    assert len(hooks(clone["model"])) == len(hooks(model))
    clone["pal"].remove()
    assert not hooks(clone["model"])


def test_a_deep_copy_can_be_scripted_before_it_has_run(data):
    model = Scriptable()
    pal = pal_fast.PALLoss(model, "2")
    clone = copy.deepcopy(model).eval()
    torch.testing.assert_close(torch.jit.script(clone)(data[0]), clone(data[0]))
    pal.remove()
    torch.jit.script(model)


def test_a_pickled_model_loads_without_pal_fast(tmp_path):
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
    clone = copy.deepcopy(trainer)
    assert clone["pal"].model is clone["model"]
    torch.testing.assert_close(clone["pal"](clone["model"](images), landmarks), first)
    unpickled = pickle.loads(pickle.dumps(trainer))
    torch.testing.assert_close(unpickled["pal"](unpickled["model"](images), landmarks), first)


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
    for clone in (copy.deepcopy(trainer), pickle.loads(pickle.dumps(trainer))):
        assert clone["pal"]._engine.head.__self__ is clone["model"]


class HoldsItsLoss(SmallNet):
    """Like a LightningModule that is itself the network."""

    def __init__(self):
        super().__init__()
        self.pal = pal_fast.PALLoss(self, "middle")
        self.late = nn.Identity()


def saved_and_loaded(model):
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


def test_a_loaded_loss_can_be_removed_before_its_first_use(data):
    images, _, landmarks = data
    model = saved_and_loaded(HoldsItsLoss())
    model.pal.remove()
    model.train()
    assert not any(isinstance(hook, Hook) for _, hook in hooks(model))
    with pytest.raises(RuntimeError, match="the hooks of this PALLoss were removed"):
        model.pal(model(images), landmarks)


@pytest.mark.parametrize("way", [copy.deepcopy, saved_and_loaded, lambda model: AveragedModel(model).module])
def test_a_model_that_holds_its_loss_is_copied_and_loaded_with_it(data, way):
    images, _, landmarks = data
    model = HoldsItsLoss()
    clone = way(model)
    assert clone.pal.model is clone
    assert clone.pal.layers == ("middle",)
    if way is saved_and_loaded:
        with pytest.raises(RuntimeError, match=r"loaded together with the model that contains it.*repeat the step"):
            clone.pal(clone(images), landmarks)
    assert torch.equal(clone.pal(clone(images), landmarks), model.pal(model(images), landmarks))
    again = way(way(model)).train()
    assert torch.equal(again.pal(again(images), landmarks), model.pal(model(images), landmarks))
    clone.pal.remove()
    third = way(clone).train()
    assert not any(isinstance(hook, Hook) for copied in (clone, third) for _, hook in hooks(copied))
    with pytest.raises(RuntimeError, match="removed"):
        third.pal(third(images), landmarks)


def test_a_copy_of_a_removed_loss_is_removed(model):
    pal = pal_fast.PALLoss(model, "middle")
    pal.remove()
    for clone in (copy.deepcopy(pal), pickle.loads(pickle.dumps(pal))):
        assert not clone._capture.handles
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in clone.model.modules())

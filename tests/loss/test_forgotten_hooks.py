"""A PALLoss that is no longer referenced leaves no hook on the model, and neither keeps the other alive."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from support.networks import SmallNet, Tokens, batch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import pal_fast


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture
def step():
    images, _, landmarks = batch(dtype=torch.float32)
    return lambda model, pal: pal(model(images), landmarks).backward()


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_deleting_the_loss_removes_its_hooks(steps, step):
    model = SmallNet()
    pal = pal_fast.PALLoss(model, ["stem", "middle"])
    for _ in range(steps):
        step(model, pal)
    assert hooks(model) > 0
    del pal
    gc.collect()
    assert hooks(model) == 0


def test_re_running_a_notebook_cell_leaves_the_hooks_of_one_loss(step):
    model = SmallNet()
    pal = pal_fast.PALLoss(model, "middle")
    step(model, pal)
    once = hooks(model)
    for _ in range(3):
        pal = pal_fast.PALLoss(model, "middle")
        step(model, pal)
    gc.collect()
    assert hooks(model) == once


def test_a_loss_deleted_during_a_forward_restores_the_attention_backends():
    class Interrupted(Tokens):
        def forward(self, images):
            x = super().forward(images)
            self.pals.clear()
            gc.collect()
            return x

    model = Interrupted()
    model.pals = [pal_fast.PALLoss(model, "blocks.0")]
    model(batch(dtype=torch.float32)[0])
    assert hooks(model) == 0
    assert torch.backends.cuda.flash_sdp_enabled()


def test_deleting_the_loss_removes_the_guards_of_checkpointed_segments(step):
    class Checkpointed(SmallNet):
        def forward(self, images):
            return self.head(checkpoint(self.middle, self.stem(images), use_reentrant=False))

    model = Checkpointed()
    pal = pal_fast.PALLoss(model, "middle")
    step(model, pal)
    assert model.middle[1]._forward_pre_hooks
    del pal
    gc.collect()
    assert hooks(model) == 0


def test_a_reference_cycle_of_model_and_loss_is_collected(step):
    model = SmallNet()
    model.pal = pal_fast.PALLoss(model, "middle")
    step(model, model.pal)
    held = [weakref.ref(model), weakref.ref(model.pal), weakref.ref(model.middle)]
    del model
    gc.collect()
    assert [ref() for ref in held] == [None] * 3


def test_deleting_copies_removes_no_hook_of_the_original(step):
    model = SmallNet()
    pal = pal_fast.PALLoss(model, "middle")
    step(model, pal)
    count = hooks(model)
    trainer = nn.ModuleDict({"model": model, "pal": pal})
    averaged = AveragedModel(model)
    for clone in (copy.deepcopy(trainer), pickle.loads(pickle.dumps(trainer)), copy.deepcopy(pal), copy.copy(pal)):
        del clone
    gc.collect()
    assert hooks(model) == count
    step(model, pal)
    averaged.update_parameters(model)
    assert averaged(batch(dtype=torch.float32)[0]).shape == (4, 5)
    pal.check(batch(dtype=torch.float32)[0])
    gc.collect()
    assert hooks(model) > 0


def test_a_failed_copy_removes_no_hook_of_the_original(step):
    class Uncopied(SmallNet):
        def __deepcopy__(self, memo):
            raise ValueError("not copied")

    model = Uncopied()
    pal = pal_fast.PALLoss(model, "middle")
    count = hooks(model)
    with pytest.raises(ValueError, match="not copied"):
        copy.deepcopy(pal)
    gc.collect()
    assert hooks(model) == count
    step(model, pal)


def test_deleting_a_loss_whose_constructor_failed_raises_nothing(capsys):
    with pytest.raises(ValueError, match="weight"):
        pal_fast.PALLoss(SmallNet(), "middle", weight=float("nan"))
    gc.collect()
    assert capsys.readouterr().err == ""

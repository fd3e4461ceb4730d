"""`check` and `attribute` leave every buffer unchanged, whatever module holds it."""

from __future__ import annotations

import pytest
import torch
from support.networks import SmallNet, batch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import pal_fast


class Counting(nn.Module):
    """Counts its batches, in place and by assignment."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("nothing", None)

    def forward(self, x):
        self.count += 1
        self.total = self.total + x.detach().sum()
        return x


def with_state():
    model = SmallNet(act=nn.GELU)
    spectral_norm(model.stem[0])
    spectral_norm(model.top[0])
    nn.utils.spectral_norm(model.classifier)
    model.stem.append(torch.jit.script(nn.BatchNorm2d(6)))
    model.middle.append(Counting())
    return model


@pytest.mark.parametrize("what", ["check", "attribute"])
def test_no_buffer_changes(what):
    model = with_state()
    images, _, _ = batch(dtype=torch.float32)
    model(images)
    before = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    if what == "check":
        assert pal_fast.PALLoss(model, "middle").check(images).problems == []
    else:
        pal_fast.attribute(model, "middle", images)
    after = dict(model.named_buffers())
    assert list(after) == list(before)
    for name, (buffer, value) in before.items():
        assert torch.equal(after[name], value), name
        if not name.startswith("stem.3"):  # a scripted module returns another tensor object each time
            assert after[name] is buffer, name

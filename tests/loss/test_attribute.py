"""`attribute` works in any grad mode, on a model in train or eval mode, and leaves the model unchanged."""

from __future__ import annotations

import pytest
import torch
from support.networks import SmallNet, batch

import pal_fast


@pytest.mark.parametrize("target", ["sum", "label", lambda logits, labels: (logits * labels[:, None]).sum(1)])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_grad_mode_does_not_matter(mode, target):
    model = SmallNet().eval()
    images, labels, _ = batch(dtype=torch.float32)
    wanted, wanted_logits = pal_fast.attribute(model, "middle", images, target=target, labels=labels)
    assert wanted.abs().max() > 0
    with mode():
        maps, logits = pal_fast.attribute(model, "middle", images * 1, target=target, labels=labels * 1)
    torch.testing.assert_close(maps, wanted)
    torch.testing.assert_close(logits, wanted_logits)
    assert not maps.requires_grad


def test_a_model_constructed_under_inference_mode_is_refused():
    images, _, _ = batch(dtype=torch.float32)
    with torch.inference_mode():
        model = SmallNet()
        with pytest.raises(RuntimeError, match=r"made under torch\.inference_mode \(parameter 'stem\.0\.weight'\)"):
            pal_fast.attribute(model, "middle", images)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_keeps_its_mode_buffers_gradients_and_hooks(training):
    model = SmallNet().train(training)
    images, _, _ = batch(dtype=torch.float32)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    addresses = [buffer.data_ptr() for buffer in model.buffers()]
    pal_fast.attribute(model, "middle", images)
    with pytest.raises(ValueError, match="labels are needed"):
        pal_fast.attribute(model, "middle", images, target="label")
    assert before.keys() == dict(model.named_buffers()).keys()
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name
    assert [buffer.data_ptr() for buffer in model.buffers()] == addresses
    assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

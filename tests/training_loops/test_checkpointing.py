"""Activation checkpointing: non-reentrant is exact, statistics included; reentrant above the layer is refused."""

from __future__ import annotations

import pytest
import torch
from support.compare import relative_error
from support.networks import SmallNet, Tokens, batch, gradient_error, judged, twin
from torch import nn
from torch.utils.checkpoint import checkpoint

import pal_fast


class Checkpointed(SmallNet):
    """Stages named in `segments` under activation checkpointing."""

    segments: tuple[str, ...] = ()
    use_reentrant = False

    def forward(self, x):
        for name in ("stem", "middle", "top"):
            stage = getattr(self, name)
            x = checkpoint(stage, x, use_reentrant=self.use_reentrant) if name in self.segments else stage(x)
        return self.classifier(self.pool(x).flatten(1))


@pytest.mark.parametrize("segments", [("stem",), ("top",), ("middle",), ("stem", "middle", "top")])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_non_reentrant_gradients_and_statistics_are_those_of_the_plain_step(segments, momentum):
    model = Checkpointed(norm=lambda c: nn.BatchNorm2d(c, momentum=momentum)).double()
    images, labels, landmarks = batch()
    judge = twin(model)
    pal = pal_fast.PALLoss(model, "middle")
    model.segments = segments
    for step in range(2):
        wanted, gradients = judged(judge, "middle", images, labels, landmarks)
        model.zero_grad()
        logits = model(images)
        loss = nn.functional.cross_entropy(logits, labels) + pal(logits, landmarks)
        loss.backward()
        assert relative_error(loss, wanted) < 1e-12
        assert gradient_error(model, gradients) < 1e-10
        for name, buffer in judge.named_buffers():
            assert relative_error(model.get_buffer(name), buffer) < 1e-12, f"{name} at step {step}"


def test_outside_checkpointed_segments_no_hook_remains():
    model = Checkpointed().double()
    model.segments = ("top",)
    images, _, landmarks = batch()
    pal = pal_fast.PALLoss(model, "middle")
    pal(model(images), landmarks).backward()
    assert not model.stem[1]._forward_pre_hooks
    assert model.top[1]._forward_pre_hooks
    pal.remove()
    assert not model.top[1]._forward_pre_hooks
    assert not model.top[1]._forward_hooks


def test_reentrant_above_the_layer_is_refused():
    model = Checkpointed()
    model.segments, model.use_reentrant = ("top",), True
    images, _, landmarks = batch(dtype=torch.float32)
    pal = pal_fast.PALLoss(model, "middle")
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        pal(model(images), landmarks)


def test_reentrant_around_the_layer_is_refused():
    model = Checkpointed()
    model.segments, model.use_reentrant = ("middle",), True
    images, _, landmarks = batch(dtype=torch.float32)
    pal = pal_fast.PALLoss(model, "middle.0")
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        pal(model(images.requires_grad_()), landmarks)


def test_reentrant_below_the_layer_is_right():
    model = Checkpointed().double()
    images, labels, landmarks = batch()
    _, gradients = judged(twin(model), "middle", images, labels, landmarks)
    model.segments, model.use_reentrant = ("stem",), True
    pal = pal_fast.PALLoss(model, "middle")
    logits = model(images.requires_grad_())
    (nn.functional.cross_entropy(logits, labels) + pal(logits, landmarks)).backward()
    assert gradient_error(model, gradients) < 1e-10


class CheckpointedTokens(Tokens):
    """Every block under non-reentrant checkpointing, the attributed one among them."""

    def forward(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.classifier(self.norm(x)[:, 0])


def test_attention_is_recomputed_with_the_kernel_of_the_forward():
    model = CheckpointedTokens().double()
    images, labels, landmarks = batch()

    def grid(f):
        return f[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)

    plain = Tokens().double()
    plain.load_state_dict(model.state_dict())
    _, gradients = judged(plain, "blocks.0", images, labels, landmarks, view=grid)
    pal = pal_fast.PALLoss(model, "blocks.0")
    for _ in range(2):
        model.zero_grad()
        logits = model(images)
        (nn.functional.cross_entropy(logits, labels) + pal(logits, landmarks)).backward()
        assert gradient_error(model, gradients) < 1e-9
    assert torch.backends.cuda.flash_sdp_enabled()

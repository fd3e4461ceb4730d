"""Activation checkpointing: non-reentrant is exact, statistics included; reentrant above the layer is refused."""

from __future__ import annotations

import weakref

import pytest
import torch
from support.compare import relative_error
from support.networks import SmallNet, Tokens, batch, gradient_error, judged, twin
from torch import nn
from torch.utils.checkpoint import checkpoint

import pal_fast


class Checkpointed(SmallNet):
    """Runs the stages named in `segments` under activation checkpointing."""

    segments: tuple[str, ...] = ()
    use_reentrant = False

    def forward(self, x):
        for name in ("stem", "middle", "top"):
            stage = getattr(self, name)
            x = checkpoint(stage, x, use_reentrant=self.use_reentrant) if name in self.segments else stage(x)
        return self.classifier(self.pool(x).flatten(1))


@pytest.mark.parametrize("segments", [("stem",), ("top",), ("middle",), ("stem", "middle", "top")])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_non_reentrant_gradients_and_statistics_equal_those_without_checkpointing(segments, momentum):
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


@pytest.mark.parametrize("segments", [("stem",), ("top",), ("stem", "middle", "top")])
def test_statistics_count_a_batch_once_when_checkpointing_is_enabled_late(segments):
    """Enabled after `pal.check`: from the first step on. Enabled in mid-training: from the second such step on."""
    images, _, landmarks = batch()

    def updates_per_step(model, pal, steps):
        counts = []
        for _ in range(steps):
            before = model.stem[1].num_batches_tracked.item(), model.top[1].num_batches_tracked.item()
            pal(model(images), landmarks).backward()
            after = model.stem[1].num_batches_tracked.item(), model.top[1].num_batches_tracked.item()
            counts.append(max(a - b for a, b in zip(after, before, strict=True)))
        return counts

    checked = Checkpointed().double()
    pal = pal_fast.PALLoss(checked, "middle")
    assert pal.check(images).problems == []
    checked.segments = segments
    assert updates_per_step(checked, pal, 2) == [1, 1]

    running = Checkpointed().double()
    pal = pal_fast.PALLoss(running, "middle")
    assert updates_per_step(running, pal, 10) == [1] * 10  # more steps than may be probed without finding anything
    running.segments = segments
    first, *others = updates_per_step(running, pal, 3)
    assert first <= 3
    assert others == [1, 1]
    assert not running.middle[0]._forward_pre_hooks


def test_the_number_of_fruitless_probes_for_checkpointing_is_bounded():
    model = Checkpointed().double()
    images, _, landmarks = batch()
    pal = pal_fast.PALLoss(model, "middle")
    probed = []
    model.middle[0].register_forward_hook(lambda m, a, out: probed.append(len(m._forward_pre_hooks)))
    for _ in range(20):
        pal(model(images), landmarks).backward()
        model.stem[1].num_batches_tracked.add_(0)
    assert sum(probed) == 1 + pal_fast.capture.checkpointing.CheckpointedSegments.FRUITLESS_PROBES
    assert probed[-1] == 0


def test_no_hook_remains_outside_checkpointed_segments():
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


class OneSegment(SmallNet):
    """The layer and what follows it in one checkpointed segment."""

    on = True

    def segment(self, x):
        return self.top(self.middle(x))

    def forward(self, images):
        x = self.stem(images)
        x = checkpoint(self.segment, x, use_reentrant=False) if self.on else self.segment(x)
        return self.classifier(self.pool(x).flatten(1))


def test_the_output_of_a_recomputation_is_neither_held_nor_taken():
    model = OneSegment()
    images, _, landmarks = batch(dtype=torch.float32)
    pal = pal_fast.PALLoss(model, "middle")
    outputs = []
    model.middle.register_forward_hook(lambda m, args, output: outputs.append(weakref.ref(output)))
    logits = model(images)
    pal(logits, landmarks).backward()
    assert len(outputs) > 1
    with pytest.raises(RuntimeError, match="has not run with gradients since this PALLoss was made or last called"):
        pal(logits, landmarks)
    del logits
    assert not any(output() is not None for output in outputs)


@pytest.mark.parametrize("act", [nn.GELU, lambda: nn.ReLU(inplace=True)], ids=["GELU", "ReLU in place"])
@pytest.mark.parametrize("frozen", [("stem", "middle"), ("stem", "middle", "top")])
def test_a_frozen_body_in_a_segment_that_extends_above_the_layer(act, frozen):
    """The recomputation must start a graph at the layer, as the forward did; otherwise it saves fewer tensors."""
    model = OneSegment(act=act).double()
    for name in frozen:
        model.get_submodule(name).requires_grad_(False)
    images, labels, landmarks = batch()
    plain = twin(model)
    plain.on = False
    losses = [(net, pal_fast.PALLoss(net, "middle")) for net in (plain, model)]
    for _ in range(2):
        for net, pal in losses:
            net.zero_grad()
            logits = net(images)
            (nn.functional.cross_entropy(logits, labels) + pal(logits, landmarks)).backward()
        gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in plain.named_parameters()}
        assert gradients["classifier.weight"].any()
        assert gradient_error(model, gradients) < 1e-12
    maps = [pal_fast.attribute(net.eval(), "middle", images)[0] for net in (plain, model)]
    torch.testing.assert_close(maps[1], maps[0])


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


def test_reentrant_below_the_layer_matches_the_double_backward():
    model = Checkpointed().double()
    images, labels, landmarks = batch()
    _, gradients = judged(twin(model), "middle", images, labels, landmarks)
    model.segments, model.use_reentrant = ("stem",), True
    pal = pal_fast.PALLoss(model, "middle")
    logits = model(images.requires_grad_())
    (nn.functional.cross_entropy(logits, labels) + pal(logits, landmarks)).backward()
    assert gradient_error(model, gradients) < 1e-10


def grid(f):
    return f[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)


class CheckpointedTokens(Tokens):
    """Every block, including the attributed one, under non-reentrant checkpointing."""

    on = True

    def forward(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.on else block(x)
        return self.classifier(self.norm(x)[:, 0])


def test_with_attention_enabling_checkpointing_in_mid_training_asks_to_repeat_one_step():
    model = CheckpointedTokens().double()
    model.on = False
    images, _, landmarks = batch()
    _, gradients = judged(twin(model), "blocks.0", images, None, landmarks, view=grid)
    pal = pal_fast.PALLoss(model, "blocks.0")
    pal(model(images), landmarks).backward()
    model.on = True
    with pytest.raises(RuntimeError, match="repeat this step"):
        pal(model(images), landmarks)
    model.zero_grad()
    pal(model(images), landmarks).backward()
    assert gradient_error(model, gradients) < 1e-9


def test_attention_is_recomputed_with_the_kernel_used_in_the_forward():
    model = CheckpointedTokens().double()
    images, labels, landmarks = batch()
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


class BlockByBlock(SmallNet):
    """Runs the children of each stage, and not the stage, as timm does under `set_grad_checkpointing`."""

    on = True

    def forward(self, x):
        for stage in (self.stem, self.middle, self.top):
            if self.on:
                for block in stage:
                    x = checkpoint(block, x, use_reentrant=False)
            else:
                x = stage(x)
        return self.classifier(self.pool(x).flatten(1))


def test_a_stage_whose_children_run_without_it_is_refused_naming_its_last_block():
    model = BlockByBlock().double()
    images, _, landmarks = batch()
    _, gradients = judged(twin(model), "middle.2", images, None, landmarks)
    pal = pal_fast.PALLoss(model, "middle")
    with pytest.raises(
        RuntimeError, match=r"'middle' has not run, but its children have.*: name its last block, 'middle\.2'"
    ):
        pal(model(images), landmarks)
    with pytest.raises(RuntimeError, match="'middle\\.2'"):
        pal.check(images)
    pal = pal_fast.PALLoss(model, "middle.2")
    pal(model(images), landmarks).backward()
    assert gradient_error(model, gradients) < 1e-10


def test_enabled_in_mid_training_the_repeated_step_names_the_last_block():
    model = BlockByBlock()
    model.on = False
    images, _, landmarks = batch(dtype=torch.float32)
    pal = pal_fast.PALLoss(model, "middle")
    for _ in range(2):
        pal(model(images), landmarks).backward()
    model.on = True
    with pytest.raises(RuntimeError, match="layer 'middle' has not run"):
        pal(model(images), landmarks)
    with pytest.raises(RuntimeError, match="name its last block"):
        pal(model(images), landmarks)


def test_a_layer_that_did_not_run_at_all_is_refused_without_naming_a_block():
    class Skipping(SmallNet):
        def forward(self, images):
            return self.head(self.stem(images).repeat(1, 2, 1, 1)[:, :8])

    pal = pal_fast.PALLoss(model := Skipping(), "middle")
    images, _, landmarks = batch(dtype=torch.float32)
    with pytest.raises(RuntimeError, match="layer 'middle' has not run with gradients"):
        pal(model(images), landmarks)


@pytest.mark.parametrize(("name", "block"), [("resnet18", "layer3.1"), ("efficientnet_b0", "blocks.4.2")])
def test_a_timm_stage_under_set_grad_checkpointing_is_refused_naming_its_last_block(name, block):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    model = timm.create_model(name, num_classes=5)
    model.set_grad_checkpointing()
    images, landmarks = torch.randn(2, 3, 64, 64), torch.rand(2, 5, 2) * 64
    pal = pal_fast.PALLoss(model, block.rpartition(".")[0])
    with pytest.raises(RuntimeError, match=f"name its last block, '{block}'"):
        pal(model(images), landmarks)
    pal.remove()
    pal = pal_fast.PALLoss(model, block)
    pal(model(images), landmarks).backward()
    assert sum(p.grad is not None and bool((p.grad != 0).any()) for p in model.parameters()) > 10

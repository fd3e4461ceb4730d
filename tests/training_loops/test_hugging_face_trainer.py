"""The Hugging Face Trainer example in docs/integrations: it trains, and accumulates to the whole batch's gradients."""

from __future__ import annotations

import pytest
import torch
from support.compare import relative_error
from support.integrations import example
from support.networks import batch

import pal_fast


@pytest.fixture
def pal_values(monkeypatch):
    """A list to which every call of a PALLoss appends its value."""
    values = []

    class Recorded(pal_fast.PALLoss):
        def forward(self, *args, **kwargs):
            loss = super().forward(*args, **kwargs)
            values.append(loss.item())
            return loss

    monkeypatch.setattr(pal_fast, "PALLoss", Recorded)
    return values


@pytest.fixture
def pal_trainer(tmp_path):
    """Builds the example's trainer for a small ViT with fixed initial weights."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=4,
        num_labels=5,
    )
    samples = zip(*batch(8, dtype=torch.float32), strict=True)
    rows = [{"pixel_values": x, "labels": y, "landmarks": p} for x, y, p in samples]
    state = transformers.ViTForImageClassification(config).state_dict()

    def model_init():
        model = transformers.ViTForImageClassification(config)
        model.load_state_dict(state)
        return model

    def make(init=False, **arguments):
        chosen = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=1,
            remove_unused_columns=False,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
            **arguments,
        )
        block = next(n for n, m in model_init().named_modules() if type(m).__name__ == "ViTLayer")
        given = {"model_init": model_init} if init else {"model": model_init()}
        return example("hugging_face_trainer").PALTrainer(args=chosen, train_dataset=rows, layer=block, **given)

    return make


def test_hugging_face_trainer(pal_trainer, pal_values):
    trainer = pal_trainer(per_device_train_batch_size=4, learning_rate=1e-2)
    before = trainer.model.classifier.weight.detach().clone()
    result = trainer.train()
    assert result.global_step == 2
    assert not torch.equal(trainer.model.classifier.weight, before)
    assert len(pal_values) == 2
    assert all(pal_values)
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] > 0
    assert len(pal_values) == 2


def test_hugging_face_trainer_uses_the_model_built_by_model_init(pal_trainer, pal_values):
    trainer = pal_trainer(init=True, per_device_train_batch_size=4)
    trainer.train()
    assert trainer.pal.model is trainer.model
    assert len(pal_values) == 2
    assert all(pal_values)


@pytest.fixture
def steps_of_trainer(pal_trainer):
    """A function that trains on batches of a given size and returns the gradients of each step."""

    def steps(size, accumulated, **arguments):
        trainer = pal_trainer(
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            max_grad_norm=0.0,
            optim="sgd",
            **arguments,
        )
        trainer.create_optimizer()
        gradients = []
        trainer.optimizer.register_step_pre_hook(
            lambda optimizer, *_: gradients.append(
                torch.cat([p.grad.flatten() for group in optimizer.param_groups for p in group["params"]])
            )
        )
        trainer.train()
        return gradients

    return steps


def test_hugging_face_trainer_accumulates_to_the_gradients_of_the_whole_batch(steps_of_trainer, pal_values):
    (whole,), *parts = (steps_of_trainer(size, accumulated) for size, accumulated in ((8, 1), (4, 2), (2, 4)))
    assert len(pal_values) == 1 + 2 + 4
    for (part,) in parts:
        assert relative_error(part, whole) < 1e-4


def test_hugging_face_trainer_steps_on_an_incomplete_accumulation_at_the_end_of_an_epoch(steps_of_trainer):
    """Four batches per epoch, three per step: the last batch makes a step of its own, as without accumulation."""
    alone = steps_of_trainer(2, 1, learning_rate=0.0, seed=3)
    three, last = steps_of_trainer(2, 3, learning_rate=0.0, seed=3)
    assert relative_error(three, sum(alone[:3]) / 3) < 1e-4
    assert relative_error(last, alone[3]) < 1e-4

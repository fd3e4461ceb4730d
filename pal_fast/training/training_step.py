"""What a run trains: the network with its loss and its optimiser, and one step of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pal_fast.attribution.targets import takes_labels
from pal_fast.training.config import TrainingConfig
from pal_fast.training.evaluation import check_logits
from pal_fast.training.initial_weights import begin
from pal_fast.training.networks import make_twice_differentiable
from pal_fast.training.randomness import derive
from pal_fast.training.set_up import Splits, make_loss, prepare, try_out


class Learner:
    """One process's network, loss and optimiser at the start of a run.

    Args:
        begun: there is a checkpoint, whose weights will replace the initial ones.

    Attributes:
        config: the given one, with pretrained="auto" resolved.
        network, optimiser: the objects whose state a checkpoint holds.
        model, stepper: the same as prepared by Accelerate, used for training.
        pal: the loss on attributions; None if its weight is 0.
        total_steps: of the whole run.
    """

    def __init__(
        self,
        config: TrainingConfig,
        splits: Splits,
        size: int,
        accelerator: Any,
        say: Callable[[str], None],
        *,
        begun: bool,
    ) -> None:
        torch.manual_seed(derive(config.seed, "network"))
        beginning = begin(
            config.model,
            len(splits.classes),
            size,
            pretrained="no" if begun else config.pretrained,
            weights=None if begun else config.weights,
        )
        if not begun:
            say(f"network {config.model}: {beginning}")
            if config.pretrained == "auto":
                # What was found affects the result, so it belongs to the config.
                config = replace(config, pretrained="yes" if beginning.pretrained else "no")
        self.network: nn.Module = beginning.network.to(accelerator.device)
        replaced = make_twice_differentiable(self.network, config.model) if config.weight else ""
        if replaced and not begun:
            say(replaced)
        if not begun:
            try_out(config, self.network, splits, size, accelerator)
        if config.sync_batchnorm:
            from pal_fast.nn import convert_sync_batchnorm

            self.network = convert_sync_batchnorm(self.network)
        self.network.to(accelerator.device)
        prepare(config, self.network, size, accelerator)
        self.optimiser = torch.optim.Adam(
            self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.model, self.stepper = accelerator.prepare(self.network, self.optimiser)
        self.pal = make_loss(config, self.model) if config.weight else None
        self.total_steps = config.epochs * splits.batches.steps
        self.config, self._accelerator, self._classes = config, accelerator, len(splits.classes)

    def step(self, window: list[dict[str, Any]], done: int, sums: Tensor) -> None:
        """One optimiser step, on the `accumulate` batches of `window`.

        Args:
            done: previous steps of the run; together with the config's seed they determine all random numbers.
            sums: the batches' `checkpoint.SUMS` are added to it.
        """
        config, device = self.config, self._accelerator.device
        rate = config.learning_rate * (1 - done / self.total_steps) ** config.power
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        for number, batch in enumerate(window):
            # Dropout and stochastic depth as a function of the step.
            torch.manual_seed(derive(config.seed, "step", done, number, self._accelerator.process_index))
            images = batch["image"].to(device, non_blocking=True)
            labels = batch["label"].to(device, non_blocking=True)
            last = number == len(window) - 1
            with _synchronised(self._accelerator, self.model, last):
                logits = self.model(images)
                check_logits(logits, self._classes, len(images))
                cross_entropy = F.cross_entropy(logits, labels)
                loss, pal, annotated = cross_entropy, None, 0
                if self.pal is not None:
                    landmarks = batch["landmarks"].to(device, non_blocking=True)
                    pal = self.pal(logits, landmarks, labels=labels if takes_labels(config.target) else None)
                    loss = loss + pal
                    # The images over which the loss takes its mean; counted on the CPU, which does not stall the GPU.
                    annotated = int(batch["landmarks"].isfinite().all(-1).any(-1).sum())
                self._accelerator.backward(loss if len(window) == 1 else loss / len(window))
            self._add_up(sums, cross_entropy, pal, annotated, logits, labels)
        self.stepper.step()
        self.optimiser.zero_grad(set_to_none=True)

    def _add_up(
        self, sums: Tensor, cross_entropy: Tensor, pal: Tensor | None, annotated: int, logits: Tensor, labels: Tensor
    ) -> None:
        """Args: annotated: number of images in the batch with a landmark; `pal` is the mean over these."""
        count = len(labels)
        correct = (logits.detach().argmax(1) == labels).sum()
        parts = [
            torch.full_like(cross_entropy.detach(), count),
            cross_entropy.detach() * count,
            torch.zeros_like(cross_entropy.detach())
            if pal is None
            else pal.detach() * (annotated / self.config.weight),
            correct.to(cross_entropy),
            torch.full_like(cross_entropy.detach(), annotated),
        ]
        sums += torch.stack(parts).to(sums)


def _synchronised(accelerator: Any, model: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Reduces gradients over the processes only with the last batch of a step."""
    return contextlib.nullcontext() if last else accelerator.no_sync(model)

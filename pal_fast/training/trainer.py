"""`train`: one run, from its beginning or from where it was stopped, to its final weights and figures."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pal_fast.training import machine, progress, recording
from pal_fast.training.config import TrainingConfig
from pal_fast.training.evaluation import Evaluation, check_logits, evaluate_network
from pal_fast.training.files import RunFolder, write_arrays, write_json, write_state
from pal_fast.training.gallery import Gallery
from pal_fast.training.networks import begin
from pal_fast.training.randomness import derive
from pal_fast.training.set_up import make_loss, open_splits, try_out

MODEL = "model"


class DivergedError(RuntimeError):
    """The loss of a run is not finite any more; every process raises it at the same step."""


def train(config: TrainingConfig, output: str | Path, *, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Trains, or goes on with the training in `output`, or returns the result that lies there.

    Call it in every process that torchrun or `accelerate launch` started.

    Args:
        config: what to train; its open defaults are resolved, and the resolved config is kept in `output`.
        output: the run's folder, see `RunFolder`; made if need be.
        say: gets a line of progress, in the first process only.

    Returns: the content of result.json.

    Raises: ValueError, TypeError, OSError, ImportError, RuntimeError, each in one sentence that names the argument
        or the file.
    """
    if not machine.is_main():
        say = _silent
    folder = RunFolder(Path(output))
    config = progress.check_folder(folder, config.resolved())
    if folder.result.exists():
        say(f"{folder.path} is complete")
        result: dict[str, Any] = folder.read_json(folder.result)
        return result
    accelerator = machine.make_accelerator(config.device, config.precision)
    with machine.deterministic(config.deterministic):
        return _Training(config, folder, accelerator, say).run()


def _silent(line: str) -> None:
    pass


class _Training:
    """One process's part of a run."""

    def __init__(self, config: TrainingConfig, folder: RunFolder, accelerator: Any, say: Callable[[str], None]) -> None:
        self.config, self.folder, self.accelerator, self.say = config, folder, accelerator, say
        assert config.size is not None
        self.size = config.size
        self.splits = open_splits(config, self.size, accelerator)
        self.steps_per_epoch = self.splits.batches.steps
        self._build()
        if accelerator.is_main_process:
            folder.gallery.mkdir(parents=True, exist_ok=True)
            progress.clean(folder)
            write_json(folder.environment, machine.environment(accelerator))
            # Last: from here on the folder counts as this run's.
            write_json(folder.config, self.config.to_mapping())
        accelerator.wait_for_everyone()
        self.progress = progress.resume(
            folder, self.network, self.optimiser, accelerator.scaler, accelerator.num_processes
        )
        # Of all processes, so that only one of them may go on from there.
        self.sums = self.progress.sums.to(accelerator.device) * accelerator.is_main_process

    def _build(self) -> None:
        config, accelerator, splits = self.config, self.accelerator, self.splits
        torch.manual_seed(derive(config.seed, "network"))
        begun = self.folder.checkpoint.exists()  # its weights take the place of those to begin with
        beginning = begin(
            config.model,
            len(splits.classes),
            self.size,
            pretrained="no" if begun else config.pretrained,
            weights=None if begun else config.weights,
        )
        if not begun:
            self.say(f"network {config.model}: {beginning.source}")
            if config.pretrained == "auto":
                # What was found decides the result, so it belongs to the config.
                config = self.config = replace(config, pretrained="yes" if beginning.pretrained else "no")
        self.network: nn.Module = beginning.network.to(accelerator.device)
        if not begun:
            try_out(config, self.network, splits, self.size, accelerator)
        if config.sync_batchnorm:
            from pal_fast.nn import convert_sync_batchnorm

            self.network = convert_sync_batchnorm(self.network)
        self.network.to(accelerator.device)
        self.optimiser = torch.optim.Adam(
            self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.model, self.stepper = accelerator.prepare(self.network, self.optimiser)
        self.layers = config.layer if splits.validation.landmark_count else ()
        self.pal = make_loss(config, self.model) if config.weight else None
        self.total_steps = config.epochs * self.steps_per_epoch

    def run(self) -> dict[str, Any]:
        config, here = self.config, self.progress
        with recording.Recorder(self.folder, self.accelerator.is_main_process, here, self.steps_per_epoch) as recorder:
            gallery = self._open_gallery(recorder)
            if here.epoch or here.step:
                self.say(f"resuming after {here.epoch} epochs and {here.step} steps")
            elif gallery is not None:
                self._look(gallery, 0, recorder)
            last: Evaluation | None = None
            while here.epoch < config.epochs:
                self._train_epoch()
                last = self._end_epoch(gallery, recorder)
            return self._finish(last)

    def _train_epoch(self) -> None:
        config, here = self.config, self.progress
        self.splits.batches.epoch, self.splits.batches.first_step = here.epoch, here.step
        self.model.train()
        window: list[dict[str, Any]] = []
        started = time.perf_counter()
        for batch in self._with_progress():
            window.append(batch)
            if len(window) < config.accumulate:
                continue
            self._step(window)
            window = []
            here.step += 1
            if here.step % config.checkpoint_every == 0 and here.step < self.steps_per_epoch:
                here.seconds += time.perf_counter() - started
                self._save()
                started = time.perf_counter()
        here.seconds += time.perf_counter() - started

    def _with_progress(self) -> Iterable[dict[str, Any]]:
        """The epoch's remaining batches, with a bar where somebody may watch."""
        from tqdm import tqdm

        here = self.progress
        hidden = not (self.accelerator.is_main_process and sys.stderr.isatty())
        bar: Iterable[dict[str, Any]] = tqdm(
            self.splits.loader,
            desc=f"epoch {here.epoch + 1}/{self.config.epochs}",
            initial=here.step * self.config.accumulate,
            total=self.steps_per_epoch * self.config.accumulate,
            unit="batch",
            leave=False,
            disable=hidden,
        )
        return bar

    def _step(self, window: list[dict[str, Any]]) -> None:
        """One step of the optimiser, on `accumulate` batches."""
        config, here, device = self.config, self.progress, self.accelerator.device
        done = here.epoch * self.steps_per_epoch + here.step
        rate = config.learning_rate * (1 - done / self.total_steps) ** config.power
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        for number, batch in enumerate(window):
            # Dropout and stochastic depth as a function of the step.
            torch.manual_seed(derive(config.seed, "step", done, number, self.accelerator.process_index))
            images = batch["image"].to(device, non_blocking=True)
            labels = batch["label"].to(device, non_blocking=True)
            last = number == len(window) - 1
            with _synchronised(self.accelerator, self.model, last):
                logits = self.model(images)
                check_logits(logits, len(self.splits.classes), len(images))
                cross_entropy = F.cross_entropy(logits, labels)
                loss, pal = cross_entropy, None
                if self.pal is not None:
                    landmarks = batch["landmarks"].to(device, non_blocking=True)
                    pal = self.pal(logits, landmarks, labels=labels)
                    loss = loss + pal
                self.accelerator.backward(loss if len(window) == 1 else loss / len(window))
            self._add_up(cross_entropy, pal, logits, labels)
        self.stepper.step()
        self.optimiser.zero_grad(set_to_none=True)

    def _add_up(self, cross_entropy: Tensor, pal: Tensor | None, logits: Tensor, labels: Tensor) -> None:
        count = len(labels)
        correct = (logits.detach().argmax(1) == labels).sum()
        parts = [
            torch.full_like(cross_entropy.detach(), count),
            cross_entropy.detach() * count,
            torch.zeros_like(cross_entropy.detach()) if pal is None else pal.detach() * (count / self.config.weight),
            correct.to(cross_entropy),
        ]
        self.sums += torch.stack(parts).to(self.sums)

    def _save(self) -> None:
        """A checkpoint of this moment. The sums of all processes go to the first one, which alone keeps them."""
        here = self.progress
        here.sums = machine.total(self.accelerator, self.sums)
        if not torch.isfinite(here.sums).all():
            raise DivergedError(
                f"the loss is not finite in epoch {here.epoch + 1} by step {here.step}: lower learning_rate or weight, "
                f"or use precision='bf16' instead of 'fp16'; {self.folder.checkpoint} is from before"
            )
        if self.accelerator.is_main_process:
            self.sums = here.sums.clone()
            progress.save(
                self.folder,
                self.config,
                self.splits.classes,
                here,
                self.network,
                self.optimiser,
                self.accelerator.scaler,
                self.accelerator.num_processes,
            )
        else:
            self.sums.zero_()

    def _end_epoch(self, gallery: Gallery | None, recorder: Any) -> Evaluation | None:
        config, here = self.config, self.progress
        sums = machine.total(self.accelerator, self.sums)
        images, cross_entropy, pal, correct = sums.tolist()
        if not all(map(math.isfinite, (cross_entropy, pal))):
            self._save()  # raises
        steps = self.steps_per_epoch
        entry: dict[str, Any] = {
            "epoch": here.epoch + 1,
            "step": (here.epoch + 1) * steps,
            "learning_rate": self.optimiser.param_groups[0]["lr"],
            "train": {
                "cross_entropy": cross_entropy / images,
                "pal": pal / images if self.pal is not None else None,
                "accuracy": correct / images,
            },
            "seconds": here.seconds,
        }
        evaluation = None
        if (here.epoch + 1) % config.validate_every == 0 or here.epoch + 1 == config.epochs:
            evaluation = self._validate()
            entry["validation"] = evaluation.to_mapping()
        here.history.append(entry)
        here.epoch, here.step, here.seconds = here.epoch + 1, 0, 0.0
        self.sums.zero_()
        self.say(recording.line(entry, config.epochs, self.layers))
        if evaluation is not None and gallery is not None:
            self._look(gallery, here.epoch, recorder)
        recorder.epoch(entry, evaluation)
        self._save()
        return evaluation

    def _validate(self) -> Evaluation:
        machine.share_buffers(self.accelerator, self.network)
        return evaluate_network(
            self.network,
            self.splits.validation_loader,
            self.splits.classes,
            device=self.accelerator.device,
            layers=self.layers,
            sigma=self.config.sigma,
            autocast=self.accelerator.autocast,
            gather=machine.gatherer(self.accelerator),
        )

    def _open_gallery(self, recorder: Any) -> Gallery | None:
        """The faces to look at, in the first process only."""
        if not (self.accelerator.is_main_process and self.config.gallery and self.config.layer):
            return None
        gallery = Gallery.of(self.splits.validation, self.config.gallery)
        recorder.faces(gallery)
        return gallery

    def _look(self, gallery: Gallery, epoch: int, recorder: Any) -> None:
        seen = gallery.look(
            self.network,
            self.config.layer[0],
            device=self.accelerator.device,
            batch=self.splits.validation_loader.batch_size or 1,
            sigma=self.config.sigma,
            autocast=self.accelerator.autocast,
        )
        recorder.gallery(gallery, epoch, seen)

    def _finish(self, last: Evaluation | None) -> dict[str, Any]:
        """Writes the final files, result.json last."""
        config, folder = self.config, self.folder
        if last is None:  # stopped after the last checkpoint and before the result
            last = self._validate()
        if self.pal is not None:
            self.pal.remove()
        result = {
            "epochs": config.epochs,
            "steps": self.total_steps,
            "layer": list(config.layer),
            "classes": self.splits.classes,
            "seconds": sum(entry["seconds"] for entry in self.progress.history),
            **last.to_mapping(),
        }
        if self.accelerator.is_main_process:
            write_state(
                folder.model,
                {
                    "kind": MODEL,
                    "config": config.to_mapping(),
                    "classes": self.splits.classes,
                    "network": {name: value.cpu() for name, value in self.network.state_dict().items()},
                },
            )
            rows = {"labels": last.labels, "predictions": last.predictions}
            if last.image_alignment is not None:
                rows["alignment"] = last.image_alignment
            write_arrays(folder.predictions, rows)
            write_json(folder.result, result)
        self.accelerator.wait_for_everyone()
        return result


def _synchronised(accelerator: Any, model: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Gradients are reduced over the processes with the last batch of a step only."""
    return contextlib.nullcontext() if last else accelerator.no_sync(model)

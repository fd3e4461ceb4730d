"""`train`: one run, from its beginning or from its checkpoint, to its final weights and figures."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from pal_fast.files import check_writable, write_npz
from pal_fast.training import checkpoint, machine, recording
from pal_fast.training.config import TrainingConfig
from pal_fast.training.evaluation import Evaluation, evaluate_network
from pal_fast.training.gallery import Gallery
from pal_fast.training.loading import errors_in_one_line
from pal_fast.training.run_folder import RunFolder, write_json, write_state
from pal_fast.training.set_up import open_splits
from pal_fast.training.training_step import Learner

MODEL = "model"

#: The advice for an image that turns out to be damaged during the run.
_WAY_OUT = (
    "; replace the file and repeat the same command, or start anew with --verify full, which decodes every image "
    "before the training (with --bad-images skip it leaves such images out)"
)


class DivergedError(RuntimeError):
    """The loss of a run is no longer finite; every process raises this at the same step."""


def train(config: TrainingConfig, output: str | Path, *, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Trains, or resumes the training in `output`, or returns the result if that is complete.

    Call it in every process that torchrun or `accelerate launch` started.

    Args:
        config: what to train; its open defaults are resolved, and the resolved config is stored in `output`.
        output: the run's folder, see `RunFolder`; created if needed.
        say: called with each line of progress, in the first process only.

    Returns: the content of result.json.

    Raises: ValueError, TypeError, OSError, ImportError, RuntimeError, each in one sentence that names the argument
        or the file.
    """
    if not machine.is_main():
        say = _silent
    folder = RunFolder(Path(output))
    config = checkpoint.check_folder(folder, config.resolved())
    data = checkpoint.describe_data(config)
    checkpoint.check_data(folder, data, config)
    if folder.result.exists():
        say(f"{folder.path} is complete")
        result: dict[str, Any] = folder.read_json(folder.result)
        return result
    if machine.is_main():
        check_writable(folder.config, makes_folder=True)
    accelerator = machine.make_accelerator(config.device, config.precision)
    way_out = _WAY_OUT if config.verify != "full" else ""
    with machine.deterministic(config.deterministic), errors_in_one_line(way_out):
        return _Training(config, data, folder, accelerator, say).run()


def _silent(line: str) -> None:
    pass


class _Training:
    """One process's part of a run."""

    def __init__(
        self,
        config: TrainingConfig,
        data: dict[str, Any],
        folder: RunFolder,
        accelerator: Any,
        say: Callable[[str], None],
    ) -> None:
        self.config, self.folder, self.accelerator, self.say = config, folder, accelerator, say
        assert config.size is not None
        self.splits = open_splits(config, config.size, accelerator)
        self.steps_per_epoch = self.splits.batches.steps
        self.learner = Learner(config, self.splits, config.size, accelerator, say, begun=folder.checkpoint.exists())
        self.config = self.learner.config
        self.layers = config.layer if self.splits.validation.landmark_count else ()
        if accelerator.is_main_process:
            folder.gallery.mkdir(parents=True, exist_ok=True)
            checkpoint.clean(folder)
            write_json(folder.data, data)
            write_json(folder.environment, machine.environment(accelerator))
            # Last, since from here on the folder is claimed for this run.
            write_json(folder.config, self.config.to_mapping())
        accelerator.wait_for_everyone()
        self.progress = checkpoint.resume(
            folder, self.learner.network, self.learner.optimiser, accelerator.scaler, accelerator.num_processes
        )
        # A checkpoint's sums cover all processes, so only one process continues from them.
        self.sums = self.progress.sums.to(accelerator.device) * accelerator.is_main_process

    def run(self) -> dict[str, Any]:
        config, here = self.config, self.progress
        with recording.Recorder(self.folder, self.accelerator.is_main_process, here, self.steps_per_epoch) as recorder:
            gallery = self._open_gallery(recorder)
            if here.epoch or here.step:
                self.say(
                    f"resuming after epoch {here.epoch}" + (f", step {here.step} of the next" if here.step else "")
                )
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
        self.learner.model.train()
        window: list[dict[str, Any]] = []
        started = time.perf_counter()
        for batch in self._with_progress():
            window.append(batch)
            if len(window) < config.accumulate:
                continue
            self.learner.step(window, here.epoch * self.steps_per_epoch + here.step, self.sums)
            window = []
            here.step += 1
            if here.step % config.checkpoint_every == 0 and here.step < self.steps_per_epoch:
                here.seconds += time.perf_counter() - started
                self._save()
                started = time.perf_counter()
        here.seconds += time.perf_counter() - started

    def _with_progress(self) -> Iterable[dict[str, Any]]:
        """The epoch's remaining batches, with a progress bar on a terminal."""
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

    def _save(self) -> None:
        """Writes a checkpoint. The sums of all processes are reduced to the first, which alone keeps them."""
        here = self.progress
        here.sums = self.accelerator.reduce(self.sums)
        if not torch.isfinite(here.sums).all():
            place = self.folder.checkpoint
            kept = f"{place} is from before" if place.exists() else "there is no checkpoint yet"
            raise DivergedError(
                f"the loss is not finite in epoch {here.epoch + 1} by step {here.step}: lower learning_rate or weight, "
                f"or use precision='bf16' instead of 'fp16'; {kept}"
            )
        if self.accelerator.is_main_process:
            self.sums = here.sums.clone()
            checkpoint.save(
                self.folder,
                self.config,
                self.splits.classes,
                here,
                self.learner.network,
                self.learner.optimiser,
                self.accelerator.scaler,
                self.accelerator.num_processes,
            )
        else:
            self.sums.zero_()

    def _end_epoch(self, gallery: Gallery | None, recorder: Any) -> Evaluation | None:
        config, here = self.config, self.progress
        sums = self.accelerator.reduce(self.sums)
        images, cross_entropy, pal, correct, annotated = sums.tolist()
        if not all(map(math.isfinite, (cross_entropy, pal))):
            self._save()  # raises
        steps = self.steps_per_epoch
        entry: dict[str, Any] = {
            "epoch": here.epoch + 1,
            "step": (here.epoch + 1) * steps,
            "learning_rate": self.learner.optimiser.param_groups[0]["lr"],
            "train": {
                "cross_entropy": cross_entropy / images,
                "pal": pal / annotated if annotated else None,
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
        from accelerate.utils import broadcast, gather_object

        # The first process's running statistics, as DDP does before its next forward.
        broadcast(list(self.learner.network.buffers()))
        return evaluate_network(
            self.learner.network,
            self.splits.validation_loader,
            self.splits.classes,
            device=self.accelerator.device,
            layers=self.layers,
            sigma=self.config.sigma,
            autocast=self.accelerator.autocast,
            gather=gather_object,
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
            self.learner.network,
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
        if self.learner.pal is not None:
            self.learner.pal.remove()
        result = {
            "epochs": config.epochs,
            "steps": self.learner.total_steps,
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
                    "network": {name: value.cpu() for name, value in self.learner.network.state_dict().items()},
                },
            )
            rows = {"labels": last.labels, "predictions": last.predictions}
            if last.image_alignment is not None:
                rows["alignment"] = last.image_alignment
            write_npz(folder.predictions, rows)
            write_json(folder.result, result)
        self.accelerator.wait_for_everyone()
        return result

"""What a run records for people to look at: history, TensorBoard scalars and pictures, the gallery's maps."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch

from pal_fast.files import write_npz
from pal_fast.training.checkpoint import Progress
from pal_fast.training.evaluation import Evaluation
from pal_fast.training.gallery import Gallery
from pal_fast.training.run_folder import RunFolder, write_json


def line(entry: dict[str, Any], epochs: int, layers: Sequence[str]) -> str:
    """A one-line summary of an epoch."""
    train, validation = entry["train"], entry.get("validation")
    said = f"epoch {entry['epoch']}/{epochs}: cross-entropy {train['cross_entropy']:.4f}"
    if train["pal"] is not None:
        said += f", PAL {train['pal']:.4f}"
    said += f", training accuracy {100 * train['accuracy']:.1f} %"
    if validation is not None:
        said += f"; validation accuracy {100 * validation['accuracy']:.1f} %"
        said += f", balanced {100 * validation['balanced_accuracy']:.1f} %"
        if layers and validation["alignment"]:
            value = validation["alignment"][layers[0]]["pearson"]
            said += ", alignment undefined" if value is None else f", alignment {value:.3f}"
    return f"{said} ({entry['seconds']:.1f} s)"


class Recorder:
    """Writes in the first process only."""

    def __init__(self, folder: RunFolder, main: bool, progress: Progress, steps: int) -> None:
        self._folder, self._progress, self._board = folder, progress, None
        if main:
            self._board = _summary_writer(folder, progress.epoch * steps)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            self._board.close()

    def epoch(self, entry: dict[str, Any], evaluation: Evaluation | None) -> None:
        if self._board is None:
            return
        write_json(self._folder.history, self._progress.history)
        step = entry["step"]
        scalars = {f"train/{name}": value for name, value in entry["train"].items() if value is not None}
        scalars["train/learning_rate"] = entry["learning_rate"]
        if evaluation is not None:
            scalars["validation/accuracy"] = evaluation.accuracy
            scalars["validation/balanced_accuracy"] = evaluation.balanced_accuracy
            scalars["validation/cross_entropy"] = evaluation.cross_entropy
            for layer, values in evaluation.alignment.items():
                scalars |= {f"alignment {layer}/{name}": value for name, value in values.items()}
            self._board.add_image("validation/confusion", confusion_picture(evaluation), step, dataformats="HWC")
        for name, value in scalars.items():
            if np.isfinite(value):
                self._board.add_scalar(name, value, step)
        self._board.flush()

    def faces(self, gallery: Gallery) -> None:
        gallery.write_faces(self._folder, pictures(gallery.images))

    def gallery(self, gallery: Gallery, epoch: int, seen: dict[str, np.ndarray[Any, Any]]) -> None:
        assert self._board is not None
        write_npz(self._folder.gallery_epoch(epoch), seen)
        from pal_fast.visualize import overlay

        tiles = [
            overlay(picture, torch.from_numpy(values))
            for picture, values in zip(pictures(gallery.images), seen["maps"], strict=True)
        ]
        step = 0 if epoch == 0 else self._progress.history[-1]["step"]
        self._board.add_images("attributions", np.stack(tiles), step, dataformats="NHWC")


def _summary_writer(folder: RunFolder, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("recording a training needs TensorBoard: pip install 'pal_fast[train]'") from error
    # Hides the events of epochs that are trained again.
    return SummaryWriter(str(folder.tensorboard), purge_step=step + 1 if step else None)


def pictures(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] from the normalised images of `pal_fast.data`'s transforms."""
    from pal_fast.data import IMAGENET_MEAN, IMAGENET_STD
    from pal_fast.visualize import unnormalise

    return unnormalise(images, IMAGENET_MEAN, IMAGENET_STD)


def confusion_picture(evaluation: Evaluation) -> np.ndarray[Any, Any]:
    """The row-normalised confusion matrix as a picture, (H, W, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = evaluation.confusion
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = evaluation.classes
    side = 2.5 + 0.5 * len(names)
    figure = Figure((side, side), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    for row in range(len(names)):
        for column in range(len(names)):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=8)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()

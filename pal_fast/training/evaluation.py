"""Accuracy, balanced accuracy, confusion and, given landmarks, the alignment of attributions with them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pal_fast import attribute, landmark_heatmap
from pal_fast.capture.model_run import in_mode
from pal_fast.reference import correlation


def measured_attribution(network: nn.Module, layer: nn.Module | str, images: Tensor) -> tuple[Tensor, Tensor]:
    """The maps on which alignment is measured, the same whatever the network was trained with, and the logits."""
    return attribute(network, layer, images, attribution="grad_input", absolute=True, channels="mean")


@dataclass(frozen=True)
class Evaluation:
    """The results of a network on a split.

    Attributes:
        classes: their names.
        confusion: (classes, classes) int64, rows the labels, columns the predictions.
        cross_entropy: mean over the images.
        alignment: per layer, the means of `pal_fast.metrics.alignment_metrics` over the images where each is defined;
            empty without landmarks.
        undefined: per layer, the number of images without an alignment ("pearson"): no landmark, or a flat map.
        labels, predictions: (N,) int64, in the data set's order.
        image_alignment: (N,) float32, "pearson" at the first layer, NaN where undefined; None without landmarks.
    """

    classes: tuple[str, ...]
    confusion: np.ndarray[Any, Any]
    cross_entropy: float
    alignment: dict[str, dict[str, float]]
    undefined: dict[str, int]
    labels: np.ndarray[Any, Any] = field(repr=False)
    predictions: np.ndarray[Any, Any] = field(repr=False)
    image_alignment: np.ndarray[Any, Any] | None = field(default=None, repr=False)

    @property
    def accuracy(self) -> float:
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def recalls(self) -> np.ndarray[Any, Any]:
        """(classes,) float64, NaN for a class without an image."""
        counts = self.confusion.sum(1)
        return np.where(counts > 0, np.diag(self.confusion) / np.maximum(counts, 1), np.nan)

    @property
    def balanced_accuracy(self) -> float:
        """The mean recall of the classes that occur."""
        return float(np.nanmean(self.recalls))

    def to_mapping(self) -> dict[str, Any]:
        """Plain values for a JSON file, without the per-image rows."""
        return {
            "images": int(self.confusion.sum()),
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "cross_entropy": self.cross_entropy,
            "recalls": {
                name: None if np.isnan(value) else float(value)
                for name, value in zip(self.classes, self.recalls, strict=True)
            },
            "confusion": self.confusion.tolist(),
            "alignment": {
                layer: {name: None if np.isnan(value) else value for name, value in values.items()}
                for layer, values in self.alignment.items()
            },
            "undefined": self.undefined,
        }


class _Rows:
    """The per-image results of one process."""

    def __init__(self) -> None:
        self.index: list[Tensor] = []
        self.label: list[Tensor] = []
        self.prediction: list[Tensor] = []
        self.loss: list[Tensor] = []
        self.alignment: list[Tensor] = []

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        return {
            name: torch.cat(parts).cpu().numpy() if parts else np.empty(0)
            for name, parts in vars(self).items()
            if parts
        }


def evaluate_network(
    network: nn.Module,
    batches: Iterable[dict[str, Any]],
    classes: Sequence[str],
    *,
    device: torch.device,
    layers: Sequence[str] = (),
    sigma: float | None = None,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    gather: Callable[[list[Any]], list[Any]] = list,
) -> Evaluation:
    """Runs the network in eval mode over the batches; each module's mode is restored.

    Args:
        batches: dicts with "image", "label", "index" and, for an alignment, "landmarks".
        layers: where alignment is measured, by `measured_attribution`; skipped for batches without landmarks.
        sigma: of the heatmap's Gaussians.
        autocast: returns the context in which the network runs.
        gather: joins the lists that the processes pass it, as Accelerate's `gather_object` does.

    Raises: ValueError, RuntimeError naming what is wrong with the network, a layer or the labels.
    """
    rows, metrics = _Rows(), {}
    with in_mode(network, training=False):
        for batch in batches:
            images = batch["image"].to(device, non_blocking=True)
            labels = batch["label"].to(device, non_blocking=True)
            landmarks = batch.get("landmarks")
            measured = layers if landmarks is not None and landmarks.shape[1] else ()
            logits: Tensor | None = None
            for layer in measured:
                assert landmarks is not None
                if layer not in metrics:
                    metrics[layer] = _new_metrics(device)
                with autocast():
                    maps, logits = measured_attribution(network, layer, images)
                heatmap = landmark_heatmap(
                    landmarks.to(device),
                    (maps.shape[1], maps.shape[2]),
                    image_size=(images.shape[2], images.shape[3]),
                    sigma=sigma,
                )
                metrics[layer].update(maps, heatmap)
                if layer == layers[0]:
                    rows.alignment.append(image_alignment(maps, heatmap))
            if logits is None:
                with torch.no_grad(), autocast():
                    logits = network(images)
            check_logits(logits, len(classes), len(images))
            logits = logits.float()
            rows.index.append(batch["index"])
            rows.label.append(batch["label"])
            rows.prediction.append(logits.argmax(1).cpu())
            rows.loss.append(F.cross_entropy(logits, labels, reduction="none").cpu().double())
    return _gathered(rows, metrics, classes, gather)


def image_alignment(maps: Tensor, heatmap: Tensor) -> Tensor:
    """Pearson's correlation of each map with its heatmap, (B,) float32 on the CPU; NaN where undefined."""
    scores, defined = correlation(maps, heatmap.to(maps))
    return torch.where(defined, scores, torch.nan).float().cpu()


def _new_metrics(device: torch.device) -> Any:
    from pal_fast.metrics import alignment_metrics

    # `gather` combines the processes, including those that saw no image.
    return alignment_metrics(sync_on_compute=False).to(device)


def _gathered(
    rows: _Rows, metrics: dict[str, Any], classes: Sequence[str], gather: Callable[[list[Any]], list[Any]]
) -> Evaluation:
    states = {
        layer: {
            name: (float(metric.total), int(metric.defined), int(metric.undefined))
            for name, metric in collection.items(keep_base=True)
        }
        for layer, collection in metrics.items()
    }
    parts = gather([(rows.arrays(), states)])
    filled = [arrays for arrays, _ in parts if arrays]
    if not filled:
        raise ValueError("batches must hold at least one image, got none")
    merged = {name: np.concatenate([arrays[name] for arrays in filled]) for name in filled[0]}
    order = np.argsort(merged["index"], kind="stable")
    merged = {name: values[order] for name, values in merged.items()}
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (merged["label"], merged["prediction"]), 1)
    alignment: dict[str, dict[str, float]] = {}
    undefined: dict[str, int] = {}
    for _, part in parts:
        for layer, values in part.items():
            alignment.setdefault(layer, {})
            undefined.setdefault(layer, 0)
            for name in values:
                sums = [other[layer][name] for _, other in parts if layer in other]
                defined = sum(count for _, count, _ in sums)
                alignment[layer][name] = sum(total for total, _, _ in sums) / defined if defined else float("nan")
            undefined[layer] = sum(other[layer]["pearson"][2] for _, other in parts if layer in other)
    return Evaluation(
        tuple(map(str, classes)),
        confusion,
        float(merged["loss"].mean()),
        alignment,
        undefined,
        merged["label"],
        merged["prediction"],
        merged.get("alignment"),
    )


def check_logits(logits: Any, classes: int, count: int) -> None:
    """Raises: ValueError unless logits are a tensor (count, classes)."""
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (count, classes):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"model must return logits of shape ({count}, {classes}), got {found}")

"""How well an attribution map agrees with a prior: metrics that accumulate over batches and processes.

    metrics = pal_fast.metrics.alignment_metrics()
    for images, landmarks in loader:
        maps, logits = pal_fast.attribute(model, "layer3", images)           # (B, H, W)
        size, image_size = maps.shape[1:], images.shape[2:]
        metrics.update(maps, pal_fast.landmark_heatmap(landmarks, size, image_size=image_size))
    metrics.compute()                                   # {"pearson": ..., "energy_pointing_game": ..., ...}
    metrics["pointing_game"].counts()                   # samples that were scored, and samples that cannot be

Each is a `torchmetrics.Metric` that averages a score per sample. A sample whose score is undefined (an empty
mask, a flat map, a non-finite value) is left out of the average and counted separately; it is neither a hit nor a
miss. With no defined sample `compute()` is NaN.

Maps must have the same size: resize one of the two beforehand, or build the heatmap at the map's size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pal_fast import _checks
from pal_fast.messages import describe
from pal_fast.reference import computing_dtype, correlation, widest_dtype

try:
    from torchmetrics import Metric, MetricCollection
except ImportError as error:
    raise ImportError("pal_fast.metrics needs torchmetrics: pip install 'pal_fast[metrics]'") from error

__all__ = [
    "AlignmentMetric",
    "CosineSimilarity",
    "EnergyPointingGame",
    "IntersectionOverUnion",
    "PearsonCorrelation",
    "PointingGame",
    "RelevanceRankAccuracy",
    "alignment_metrics",
]


def _share(name: str, value: float) -> float:
    _checks.finite_number(name, value)
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, a share of the maximum, got {value}")
    return float(value)


class AlignmentMetric(Metric):
    """The mean of a score per sample, over the samples where it is defined.

    A subclass implements `scores(attribution, heatmap) -> (scores, defined)`, both (B,), for finite (B, H, W) maps;
    scores where `defined` is False are ignored.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    total: Tensor
    defined: Tensor
    undefined: Tensor

    def __init__(self, **kwargs: Any) -> None:
        """Args: kwargs: of `torchmetrics.Metric`, such as `sync_on_compute` and `process_group`."""
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("defined", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("undefined", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        """Moves the states; the sum becomes float32 before it reaches a device without float64."""
        if widest_dtype(fn(torch.zeros(1)).device) == torch.float32:
            self.total = self.total.float()
            self._defaults["total"] = torch.zeros_like(self.total)
        return super()._apply(fn, exclude_state)

    def scores(self, attribution: Tensor, heatmap: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def update(self, attribution: Tensor, heatmap: Tensor) -> None:
        """Adds a batch.

        Args:
            attribution: (B, H, W) float, as from `pal_fast.attribution_map`.
            heatmap: (B, H, W) of any real dtype, at the same size; a mask is a heatmap of zeros and ones.

        Raises: TypeError, ValueError naming the argument, unless both are such maps on the metric's device.
        """
        for name, given in (("attribution", attribution), ("heatmap", heatmap)):
            if not isinstance(given, Tensor):
                raise TypeError(f"{name} must be a tensor of shape (B, H, W), got {describe(given)}")
            if given.is_complex():
                raise TypeError(f"{name} must hold real numbers, got {given.dtype}")
            _checks.on_device(name, given, "the metric", self.total.device)
        if attribution.ndim != 3 or attribution.shape != heatmap.shape:
            raise ValueError(
                "attribution and heatmap must be (B, H, W) and of the same shape, "
                f"got {tuple(attribution.shape)} and {tuple(heatmap.shape)}"
            )
        if attribution.shape[1] * attribution.shape[2] == 0:
            raise ValueError(f"attribution must have at least one cell, got {tuple(attribution.shape)}")
        a = attribution.detach().to(computing_dtype(attribution.dtype))
        h = heatmap.detach().to(a)
        finite = (torch.isfinite(a) & torch.isfinite(h)).all(2).all(1)
        a, h = (torch.where(finite[:, None, None], values, 0.0) for values in (a, h))
        scores, defined = self.scores(a, h)
        defined = defined & finite
        self.total += torch.where(defined, scores, 0.0).sum(dtype=self.total.dtype)
        self.defined += defined.sum()
        self.undefined += (~defined).sum()

    def compute(self) -> Tensor:
        """The mean over the defined samples, 0-dim float64 (float32 on MPS); NaN if there are none."""
        return self.total / self.defined

    def counts(self) -> tuple[int, int]:
        """The numbers of defined and undefined samples over all processes, each of which must call this."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return int(self.defined), int(self.undefined)


class PearsonCorrelation(AlignmentMetric):
    """Pearson's correlation of the map with the heatmap over its cells: minus the default loss of `pal_loss`.

    Undefined where one of the two is flat.
    """

    def scores(self, attribution: Tensor, heatmap: Tensor) -> tuple[Tensor, Tensor]:
        return correlation(attribution, heatmap)


class CosineSimilarity(AlignmentMetric):
    """The cosine between the map and the heatmap as vectors. Undefined where one of the two is all zero."""

    def scores(self, attribution: Tensor, heatmap: Tensor) -> tuple[Tensor, Tensor]:
        a, h = (_unit_peak(values).flatten(1) for values in (attribution, heatmap))
        lengths = a.norm(dim=1) * h.norm(dim=1)
        return (a * h).sum(1) / lengths, lengths > 0


class EnergyPointingGame(AlignmentMetric):
    """The share of the positive attribution that lies in the mask, each cell weighted by the mask's value.

    Score-CAM's energy-based pointing game (Wang et al., CVPR-W 2020) with masks from 0 to 1; a heatmap is divided
    by its maximum first. On a 0/1 mask this is Quantus's relevance mass accuracy. Undefined where no attribution is
    positive or the mask is empty.
    """

    def scores(self, attribution: Tensor, heatmap: Tensor) -> tuple[Tensor, Tensor]:
        energy = _unit_peak(attribution.clamp(min=0))
        mask = _unit_peak(heatmap.clamp(min=0))
        total = energy.sum((1, 2))
        return (energy * mask).sum((1, 2)) / total, (total > 0) & (mask.amax((1, 2)) > 0)


class _Masked(AlignmentMetric):
    """A score against a mask: the cells where the heatmap is above a share of its maximum."""

    def __init__(self, mask_threshold: float = 0.5, **kwargs: Any) -> None:
        """Args: mask_threshold: from 0 to below 1; any value leaves a 0/1 mask as it is."""
        super().__init__(**kwargs)
        self.mask_threshold = _share("mask_threshold", mask_threshold)

    def mask(self, heatmap: Tensor) -> Tensor:
        """(B, H, W) bool, empty where no value is positive."""
        return (heatmap > 0) & (heatmap > self.mask_threshold * heatmap.amax((1, 2), keepdim=True))


class PointingGame(_Masked):
    """Whether the strongest cell of the map lies in the mask (Zhang et al., IJCV 2018), without a margin.

    If several cells are equally strong, one of them in the mask suffices, as in Quantus. Undefined where the mask is
    empty or the map is constant.
    """

    def scores(self, attribution: Tensor, heatmap: Tensor) -> tuple[Tensor, Tensor]:
        mask = self.mask(heatmap)
        strongest = attribution == attribution.amax((1, 2), keepdim=True)
        hit = (strongest & mask).any(2).any(1)
        return hit.to(attribution), mask.any(2).any(1) & ~strongest.all(2).all(1)


class RelevanceRankAccuracy(_Masked):
    """Of the k strongest cells, the share that lies in the mask, where k is the size of the mask.

    Arras et al., Information Fusion 2022. Where the k-th strongest value is tied (a map with many zeros), this is
    the mean over all ways to break the tie, so that no corner of the map is preferred. Undefined where the mask is
    empty or the map is constant.
    """

    def scores(self, attribution: Tensor, heatmap: Tensor) -> tuple[Tensor, Tensor]:
        mask = self.mask(heatmap).flatten(1)  # (B, N)
        values = attribution.flatten(1)
        size = mask.sum(1, keepdim=True)  # (B, 1), k
        least = values.sort(dim=1, descending=True).values.gather(1, (size - 1).clamp(min=0))
        above, tied = values > least, values == least
        open_places = (size - above.sum(1, keepdim=True)).to(values)
        share = open_places / tied.sum(1, keepdim=True)  # of the tied cells that are among the k
        inside = (above & mask).sum(1) + share[:, 0] * (tied & mask).sum(1)
        varies = (values != values[:, :1]).any(1)
        return inside / size[:, 0].to(values), (size[:, 0] > 0) & varies


class IntersectionOverUnion(_Masked):
    """IoU of the mask with the cells whose attribution is above a share of its maximum.

    Undefined where the mask is empty or no attribution is positive.
    """

    def __init__(self, threshold: float = 0.5, mask_threshold: float = 0.5, **kwargs: Any) -> None:
        """Args: threshold: of the attribution, mask_threshold: of the heatmap; shares of the maximum in [0, 1)."""
        super().__init__(mask_threshold, **kwargs)
        self.threshold = _share("threshold", threshold)

    def scores(self, attribution: Tensor, heatmap: Tensor) -> tuple[Tensor, Tensor]:
        mask = self.mask(heatmap)
        peak = attribution.amax((1, 2), keepdim=True)
        strong = (attribution > 0) & (attribution > self.threshold * peak)
        union = (mask | strong).sum((1, 2))
        defined = mask.any(2).any(1) & strong.any(2).any(1)
        return (mask & strong).sum((1, 2)) / union.to(attribution), defined


def _unit_peak(values: Tensor) -> Tensor:
    """Divides by each map's largest magnitude, so that squares and sums neither underflow nor overflow; zeros stay."""
    peak = values.abs().amax((1, 2), keepdim=True)
    return values / torch.where(peak == 0, 1.0, peak)


def alignment_metrics(**kwargs: Any) -> MetricCollection:
    """All metrics of this module under the names of the literature. Args: kwargs: of every `Metric`."""
    return MetricCollection(
        {
            "pearson": PearsonCorrelation(**kwargs),
            "cosine": CosineSimilarity(**kwargs),
            "energy_pointing_game": EnergyPointingGame(**kwargs),
            "pointing_game": PointingGame(**kwargs),
            "relevance_rank_accuracy": RelevanceRankAccuracy(**kwargs),
            "iou": IntersectionOverUnion(**kwargs),
        },
        # Metrics must not share state just because their states are equal after the first batch.
        compute_groups=False,
    )

"""The alignment metrics: against their definitions in numpy, against Quantus, and over batches and processes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.metric_processes import in_each
from torch import Tensor

pytest.importorskip("torchmetrics", reason="the metrics need torchmetrics")

from pal_fast import metrics, pal_loss

ALL = tuple(metrics.alignment_metrics())


@pytest.fixture
def maps(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(12, 6, 7) attributions of both signs, and masks with at least one cell in and one out."""
    attribution = torch.randn(12, 6, 7, generator=generator)
    mask = torch.rand(12, 6, 7, generator=generator) < 0.3
    mask[:, 0, 0], mask[:, 0, 1] = True, False
    return attribution, mask.float()


def by_definition(name: str, a: np.ndarray, m: np.ndarray) -> float:
    """The score of one sample in numpy, from the definition alone."""
    inside = m > 0.5 * m.max()
    positive = a.clip(min=0)
    if name == "pearson":
        return float(np.corrcoef(a.ravel(), m.ravel())[0, 1])
    if name == "cosine":
        return float(a.ravel() @ m.ravel() / np.linalg.norm(a) / np.linalg.norm(m))
    if name == "energy_pointing_game":
        return float((positive * m / m.max()).sum() / positive.sum())
    if name == "pointing_game":
        return float(inside.ravel()[a.argmax()])
    if name == "relevance_rank_accuracy":
        top = np.argsort(-a.ravel())[: inside.sum()]
        return float(inside.ravel()[top].mean())
    strong = a > 0.5 * a.max()
    return float((strong & inside).sum() / (strong | inside).sum())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("soft", [False, True], ids=["binary mask", "soft mask"])
def test_score_matches_the_definition(
    name: str, soft: bool, maps: tuple[Tensor, Tensor], generator: torch.Generator
) -> None:
    attribution, mask = maps
    if soft:
        mask = torch.rand(mask.shape, generator=generator)
    metric = metrics.alignment_metrics()[name]
    metric.update(attribution, mask)
    wanted = np.mean(
        [by_definition(name, a, m) for a, m in zip(attribution.double().numpy(), mask.numpy(), strict=True)]
    )
    assert metric.compute().item() == pytest.approx(wanted, abs=1e-5)
    assert metric.defined == 12
    assert metric.undefined == 0


def test_pearson_is_minus_the_default_loss(maps: tuple[Tensor, Tensor]) -> None:
    attribution, mask = maps
    metric = metrics.PearsonCorrelation()
    metric.update(attribution, mask)
    loss = pal_loss(attribution[:, None], None, mask, attribution="activation", backend="reference")
    assert metric.compute().item() == pytest.approx(-loss.item(), abs=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_an_undefined_sample_is_counted_but_does_not_change_the_value(name: str, maps: tuple[Tensor, Tensor]) -> None:
    attribution, mask = maps
    alone, together = metrics.alignment_metrics()[name], metrics.alignment_metrics()[name]
    alone.update(attribution, mask)
    broken = attribution[:1].clone()
    broken[0, 2, 3] = math.nan
    attribution = torch.cat([attribution, attribution[:1], torch.zeros(1, 6, 7), broken])
    mask = torch.cat([mask, torch.zeros(1, 6, 7), mask[:1], mask[:1]])  # empty mask, zero map, NaN
    together.update(attribution, mask)
    assert together.undefined == 3
    assert together.compute() == alone.compute()


@pytest.mark.parametrize("name", ALL)
def test_without_a_defined_sample_the_value_is_nan(name: str) -> None:
    metric = metrics.alignment_metrics()[name]
    metric.update(torch.ones(2, 3, 3), torch.zeros(2, 3, 3))
    assert metric.undefined == 2
    assert metric.compute().isnan()


@pytest.mark.parametrize("name", ALL)
def test_batches_accumulate_and_reset_clears_them(name: str, maps: tuple[Tensor, Tensor]) -> None:
    attribution, mask = maps
    once, parts = metrics.alignment_metrics()[name], metrics.alignment_metrics()[name]
    once.update(attribution, mask)
    for chosen in torch.arange(12).split(5):
        parts.update(attribution[chosen], mask[chosen])
    assert parts.compute().item() == pytest.approx(once.compute().item(), abs=1e-12)
    parts.reset()
    assert parts.defined == 0


@pytest.mark.parametrize("factor", [1e-30, 1e30])
@pytest.mark.parametrize("name", ALL)
def test_the_score_is_invariant_to_the_scale_of_the_attribution(
    name: str, factor: float, maps: tuple[Tensor, Tensor]
) -> None:
    attribution, mask = maps
    plain, scaled = metrics.alignment_metrics()[name], metrics.alignment_metrics()[name]
    plain.update(attribution, mask)
    scaled.update(attribution * factor, mask)
    assert scaled.undefined == 0
    assert scaled.compute().item() == pytest.approx(plain.compute().item(), abs=1e-5)


def test_half_precision_is_scored_in_float32(maps: tuple[Tensor, Tensor]) -> None:
    attribution, mask = maps
    half = metrics.CosineSimilarity()
    half.update(attribution.half(), mask)
    rounded = metrics.CosineSimilarity()
    rounded.update(attribution.half().float(), mask)
    assert half.compute() == rounded.compute()


def test_two_processes_give_the_same_value_as_one(maps: tuple[Tensor, Tensor], tmp_path: Any) -> None:
    attribution, mask = maps
    mask[:2] = 0  # both in the first process
    alone = metrics.alignment_metrics()
    alone.update(attribution, mask)
    wanted = {name: value.item() for name, value in alone.compute().items()}
    torch.multiprocessing.spawn(in_each, (str(tmp_path), attribution, mask), nprocs=2)
    for rank, share in enumerate((5, 7)):
        values, counts, own = torch.load(tmp_path / f"{rank}.pt")
        assert {name: value.item() for name, value in values.items()} == pytest.approx(wanted, abs=1e-12)
        assert counts == dict.fromkeys(ALL, (10, 2)), "not counted over both processes"
        assert own == share, "counting left the other process's samples in this one's state"


QUANTUS = json.loads((Path(__file__).parent / "quantus.json").read_text())


@pytest.mark.parametrize("name", QUANTUS["scores"])
def test_agrees_with_the_recorded_results_of_quantus(name: str) -> None:
    """support/quantus_figures.py ran Quantus itself to write tests/metrics/quantus.json."""
    for a, m, wanted in zip(QUANTUS["attribution"], QUANTUS["mask"], QUANTUS["scores"][name], strict=True):
        metric = metrics.alignment_metrics()[name]
        metric.update(torch.tensor([a]), torch.tensor([m]))
        assert metric.counts() == (1, 0)
        assert metric.compute().item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("name", QUANTUS["scores"])
def test_agrees_with_quantus_itself_where_both_are_defined(name: str, maps: tuple[Tensor, Tensor]) -> None:
    pytest.importorskip(
        "quantus", reason="Quantus is not installed; its kept figures were compared", exc_type=ImportError
    )
    from support.quantus_figures import judged

    attribution, mask = maps
    attribution = attribution.abs() + 0.01
    theirs = judged(name, attribution.numpy(), mask.bool().numpy())
    ours = metrics.alignment_metrics()[name]
    ours.update(attribution, mask)
    assert ours.compute().item() == pytest.approx(np.mean(theirs), abs=1e-6)


def test_an_empty_mask_is_a_hit_for_quantus_and_undefined_here() -> None:
    assert QUANTUS["score_of_an_empty_mask"]["pointing_game"] == "1.0"  # NaN written into a boolean array
    metric = metrics.PointingGame()
    metric.update(torch.tensor(QUANTUS["attribution"][:1]), torch.zeros(1, 5, 6))
    assert metric.counts() == (0, 1)
    assert metric.compute().isnan()


@pytest.mark.parametrize("corner", [0, -1])
def test_tied_cells_share_the_remaining_ranks(corner: int) -> None:
    """One strong cell in the mask; eight zeros, two in the mask, tie for the other two ranks: (1 + 2 * 2 / 8) / 3."""
    attribution, mask = torch.zeros(1, 3, 3), torch.zeros(1, 3, 3)
    attribution[0, 1, 1] = 5.0
    mask[0, 1, 1] = mask[0, corner, corner] = mask[0, corner, 1] = 1
    metric = metrics.RelevanceRankAccuracy()
    metric.update(attribution, mask)
    assert metric.compute().item() == pytest.approx((1 + 2 * 2 / 8) / 3)


def test_a_soft_mask_weights_the_energy() -> None:
    attribution = torch.tensor([[[3.0, 1.0], [-7.0, 0.0]]])
    heatmap = torch.tensor([[[2.0, 1.0], [4.0, 0.0]]])
    metric = metrics.EnergyPointingGame()
    metric.update(attribution, heatmap)
    assert metric.compute().item() == pytest.approx((3 * 0.5 + 1 * 0.25) / 4)


@pytest.mark.parametrize(("threshold", "wanted"), [(0.0, 2 / 4), (0.3, 2 / 3), (0.45, 1 / 3), (0.5, 0 / 3)])
def test_iou_thresholds_are_fractions_of_the_maximum(threshold: float, wanted: float) -> None:
    attribution = torch.tensor([[[10.0, 4.0, 2.0, 5.0]]])  # strictly above it: 4, 3, 2 and 1 cells
    mask = torch.tensor([[[0.0, 1.0, 0.0, 1.0]]])
    metric = metrics.IntersectionOverUnion(threshold=threshold)
    metric.update(attribution, mask)
    assert metric.compute().item() == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("attribution", "heatmap", "error", "words"),
    [
        ([[1.0]], torch.ones(1, 1, 1), TypeError, "attribution must be a tensor"),
        (torch.ones(1, 2, 2), np.ones((1, 2, 2)), TypeError, "heatmap must be a tensor"),
        (torch.ones(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.complex64), TypeError, "heatmap must hold real"),
        (torch.ones(1, 2, 2), torch.ones(1, 4, 4), ValueError, "of the same shape"),
        (torch.ones(2, 1, 3, 3), torch.ones(2, 3, 3), ValueError, r"\(B, H, W\).*\(2, 1, 3, 3\)"),
        (torch.ones(1, 0, 2), torch.ones(1, 0, 2), ValueError, "at least one cell"),
        (
            torch.ones(1, 2, 2, device="meta"),
            torch.ones(1, 2, 2),
            ValueError,
            "attribution is on meta.*metric is on cpu",
        ),
    ],
)
def test_bad_maps_are_refused(attribution: Any, heatmap: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        metrics.PointingGame().update(attribution, heatmap)


@pytest.mark.parametrize("name", ["threshold", "mask_threshold"])
@pytest.mark.parametrize("value", [1.0, -0.1, math.nan])
def test_bad_thresholds_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        metrics.IntersectionOverUnion(**{name: value})


def test_an_empty_batch_does_not_change_the_value(maps: tuple[Tensor, Tensor]) -> None:
    attribution, mask = maps
    collection = metrics.alignment_metrics()
    collection.update(attribution, mask)
    before = dict(collection.compute())
    collection.update(attribution[:0], mask[:0])
    assert dict(collection.compute()) == before
    assert collection["iou"].counts() == (12, 0)


def test_the_collection_computes_all_metrics_under_their_literature_names(maps: tuple[Tensor, Tensor]) -> None:
    batch_value = metrics.alignment_metrics()(*maps)
    assert list(batch_value) == list(ALL)
    assert set(ALL) == {
        "pearson",
        "cosine",
        "energy_pointing_game",
        "pointing_game",
        "relevance_rank_accuracy",
        "iou",
    }

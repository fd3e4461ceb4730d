"""The alignment metrics: against their definitions in numpy, against Quantus, and over batches and processes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
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
    """One sample's score in numpy, from the definition alone."""
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
def test_score_is_the_definition(
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
def test_an_undefined_sample_is_counted_and_changes_nothing(name: str, maps: tuple[Tensor, Tensor]) -> None:
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
def test_batches_add_up_and_reset_forgets(name: str, maps: tuple[Tensor, Tensor]) -> None:
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
def test_scale_of_the_attribution_does_not_matter(name: str, factor: float, maps: tuple[Tensor, Tensor]) -> None:
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


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"\(B, H, W\).*\(2, 1, 3, 3\)"):
        metrics.PointingGame().update(torch.ones(2, 1, 3, 3), torch.ones(2, 3, 3))
    with pytest.raises(ValueError, match="mask_threshold"):
        metrics.PointingGame(mask_threshold=1.0)


def _worker(rank: int, directory: str, attribution: Tensor, mask: Tensor) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/meet", rank=rank, world_size=2)
    metric = metrics.RelevanceRankAccuracy()
    share = slice(0, 5) if rank == 0 else slice(5, None)  # uneven on purpose
    metric.update(attribution[share], mask[share])
    torch.save(metric.compute(), f"{directory}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_agree_with_one(maps: tuple[Tensor, Tensor], tmp_path: Any) -> None:
    attribution, mask = maps
    alone = metrics.RelevanceRankAccuracy()
    alone.update(attribution, mask)
    torch.multiprocessing.spawn(_worker, (str(tmp_path), attribution, mask), nprocs=2)
    for rank in (0, 1):
        assert torch.load(tmp_path / f"{rank}.pt").item() == pytest.approx(alone.compute().item(), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "quantus_name"),
    [
        ("pointing_game", "PointingGame"),
        ("relevance_rank_accuracy", "RelevanceRankAccuracy"),
        ("energy_pointing_game", "RelevanceMassAccuracy"),
    ],
)
def test_agrees_with_quantus_where_both_are_defined(name: str, quantus_name: str, maps: tuple[Tensor, Tensor]) -> None:
    quantus = pytest.importorskip("quantus", reason="the comparison needs Quantus", exc_type=ImportError)
    attribution, mask = maps
    attribution = attribution.abs() + 0.01
    theirs = getattr(quantus, quantus_name)(
        abs=False, normalise=False, disable_warnings=True, display_progressbar=False
    )
    judged = [
        theirs.evaluate_instance(a=a, s=s)
        for a, s in zip(attribution.numpy()[:, None], mask.bool().numpy()[:, None], strict=True)
    ]
    ours = metrics.alignment_metrics()[name]
    ours.update(attribution, mask)
    assert ours.compute().item() == pytest.approx(np.mean(judged, dtype=float), abs=1e-6)

# mypy: allow-untyped-defs
"""Triton: from moments to a sample's score and its derivative, and from scores to the batch's loss."""

from __future__ import annotations

import triton
import triton.language as tl

from pal_fast.constants import FLAT_TOLERANCE

FLAT: tl.constexpr = tl.constexpr(FLAT_TOLERANCE**2)

# Indices of pal_fast.constants.NORMALIZE, SCALE and REDUCTION.
PEAK: tl.constexpr = tl.constexpr(1)
TOTAL: tl.constexpr = tl.constexpr(2)
SCALE_SUM: tl.constexpr = tl.constexpr(0)
SCALE_MEAN: tl.constexpr = tl.constexpr(1)
MEAN: tl.constexpr = tl.constexpr(0)
NONE: tl.constexpr = tl.constexpr(2)


@triton.jit
def heatmap_divisor(total_h, peak, NORMALIZE: tl.constexpr):
    """The divisor of the heatmap under `normalize`, float64; 1 in place of 0."""
    divisor = tl.full([], 1.0, tl.float64)
    if NORMALIZE == PEAK:
        divisor = peak.to(tl.float64)
    elif NORMALIZE == TOTAL:
        divisor = total_h
    return tl.where(divisor == 0.0, 1.0, divisor)


@triton.jit
def heatmap_factor(divisor, var_h, PEARSON: tl.constexpr):
    """The factor of the centred heatmap, float64; `var_h` is the variance of the undivided heatmap.

    Under "pearson" it standardises the heatmap, so that a heatmap of any scale fits float32's range; of the divisor
    only the sign is used.
    """
    factor = 1.0 / divisor
    if PEARSON:
        factor = tl.where(factor < 0.0, -1.0, 1.0) / tl.sqrt(tl.where(var_h > 0.0, var_h, 1.0))
    return factor


@triton.jit
def clamped(value, T: tl.constexpr):
    """Clamps a float64 well inside T's range, so that a loss scale cannot overflow it: infinity times 0 is NaN."""
    largest = 2.0**1000 if T == tl.float64 else 2.0**104  # noqa: SIM300
    return tl.where(value > largest, largest, tl.where(value < -largest, -largest, value))


@triton.jit
def sample_weight(sample_weight_ptr, sample, annotated, mean_h, var_h, PEARSON: tl.constexpr):
    """w_b, float64: 0 without a landmark, for a non-finite heatmap, and under "pearson" for a flat one."""
    valid = (annotated > 0) & (tl.abs(mean_h) < float("inf"))
    if PEARSON:
        valid = valid & (var_h > (var_h + mean_h * mean_h) * FLAT)
    weight = tl.full([], 1.0, tl.float64)
    if sample_weight_ptr is not None:
        weight = tl.load(sample_weight_ptr + sample).to(tl.float64)
    return tl.where(valid, weight, 0.0)


@triton.jit
def score_scale(terms, PEARSON: tl.constexpr, SCALE: tl.constexpr):
    """s * terms: 1 for "pearson", whose heatmap is standardised; terms, 1 or sqrt(terms) for "sum", "mean", "unit"."""
    if PEARSON or SCALE == SCALE_MEAN:
        scale = tl.full([], 1.0, tl.float64)
    elif SCALE == SCALE_SUM:
        scale = terms
    else:
        scale = tl.sqrt(terms)
    return scale


@triton.jit
def score_and_slopes(mean_a, var_a, cov, scale, terms):
    """P, slope and curve of a group from its moments and `cov = mean((a - mu) hc)`; all exactly 0 if it is flat.

    `dP/da = slope (hc + curve (a - mu))`: both are of the order of 1 / sigma; their product, cov / sigma^3, could leave
    float32's range. A group with NaN is not flat: NaN reaches the loss.
    """
    flat = var_a <= (var_a + mean_a * mean_a) * FLAT
    sigma = tl.sqrt(tl.where(flat, 1.0, var_a))
    score = -scale * cov / sigma
    slope = -scale / (terms * sigma)
    curve = -cov / (sigma * sigma)
    return tl.where(flat, 0.0, score), tl.where(flat, 0.0, slope), tl.where(flat, 0.0, curve)


@triton.jit
def score_sample(
    sample_weight_ptr,
    sample,
    annotated,
    mean_a,
    var_a,
    mean_h,
    var_h,
    cov,
    total_h,
    peak,
    terms,
    PEARSON: tl.constexpr,
    SCALE: tl.constexpr,
    NORMALIZE: tl.constexpr,
):
    """A sample's P, slope, curve, the heatmap's factor, and w_b; the moments are those of the undivided heatmap."""
    weight = sample_weight(sample_weight_ptr, sample, annotated, mean_h, var_h, PEARSON)
    factor = heatmap_factor(heatmap_divisor(total_h, peak, NORMALIZE), var_h, PEARSON)
    scale = score_scale(terms, PEARSON, SCALE)
    score, slope, curve = score_and_slopes(mean_a, var_a, cov * factor, scale, terms)
    dead = weight == 0.0
    return (
        tl.where(dead, 0.0, score),
        tl.where(dead, 0.0, slope),
        tl.where(dead, 0.0, curve),
        factor,
        weight,
    )


@triton.jit
def store_sample(loss_ptr, factor_ptr, scores_ptr, sample, score, weight, REDUCTION: tl.constexpr):
    """Without a reduction stores the sample's final loss and factor; otherwise P_b and w_b go to the workspace."""
    if REDUCTION == NONE:
        tl.store(loss_ptr + sample, tl.where(weight == 0.0, 0.0, weight * score))
        tl.store(factor_ptr + sample, weight)
    else:
        tl.store(scores_ptr + 2 * sample, score)
        tl.store(scores_ptr + 2 * sample + 1, weight)


@triton.jit
def reduce_batch(loss_ptr, factor_ptr, scores_ptr, batch, REDUCTION: tl.constexpr, BLOCK_B: tl.constexpr):
    """`sum w P / sum w` or `sum w P`, and every sample's factor; run by one program, in a fixed order."""
    totals = tl.zeros([BLOCK_B], tl.float64)
    weights = tl.zeros([BLOCK_B], tl.float64)
    for first in range(0, batch, BLOCK_B):
        b = first + tl.arange(0, BLOCK_B)
        score = tl.load(scores_ptr + 2 * b, mask=b < batch, other=0.0)
        weight = tl.load(scores_ptr + 2 * b + 1, mask=b < batch, other=0.0)
        totals += tl.where(weight == 0.0, 0.0, weight * score)
        weights += weight
    total = tl.sum(totals, axis=0)
    total_weight = tl.sum(weights, axis=0)
    inverse = tl.full([], 1.0, tl.float64)
    if REDUCTION == MEAN:
        inverse = tl.where(total_weight == 0.0, 0.0, 1.0 / tl.where(total_weight == 0.0, 1.0, total_weight))
        total = tl.where(total_weight == 0.0, 0.0, total * inverse)
    tl.store(loss_ptr, total)
    for first in range(0, batch, BLOCK_B):
        b = first + tl.arange(0, BLOCK_B)
        weight = tl.load(scores_ptr + 2 * b + 1, mask=b < batch, other=0.0)
        tl.store(factor_ptr + b, weight * inverse, mask=b < batch)

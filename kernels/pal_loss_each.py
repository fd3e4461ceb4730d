# mypy: allow-untyped-defs
"""Triton: the loss of the strategy "each", in two launches.

Every channel's score needs the whole heatmap, which a program of the one-launch kernel has only when all of
the sample's programs are done. So the first launch, a program for each sample, writes the centred heatmap;
the second reads the layer once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attribution import attribute, load_layer, sum_of_squares
from .gaussians import any_landmark, cell_centres, exact, heatmap_at, is_last
from .score import NONE, heatmap_divisor, reduce_batch, sample_weight, score_and_slopes, score_scale, store_sample


@triton.jit
def prior_kernel(
    heatmap_ptr,  # [B, H, W] or None
    landmarks_ptr,  # [B, K, 2] or None
    visible_ptr,  # [B, K] or None
    weights_ptr,  # [B, K] or None
    sample_weight_ptr,  # [B] or None
    plane_ptr,  # [B, H, W]: h - mean(h)
    prior_ptr,  # [B, 2] float64: s * terms, and w_b
    hw,
    width,
    count,  # K
    step_x,
    step_x_low,
    step_y,
    step_y_low,
    falloff,
    falloff_low,
    PEARSON: tl.constexpr,
    SCALE: tl.constexpr,
    MAXIMUM: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    T: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    base = sample * hw
    scale_x = exact(step_x, step_x_low, T)
    scale_y = exact(step_y, step_y_low, T)
    decay = exact(falloff, falloff_low, T)

    # 1. The heatmap, kept in plane, its total and its peak.
    totals = tl.zeros([BLOCK_N], tl.float64)
    peaks = tl.full([BLOCK_N], float("-inf"), T)
    for block in range(0, hw, BLOCK_N):
        cells = block + tl.arange(0, BLOCK_N)
        if landmarks_ptr is not None:
            x, y = cell_centres(cells, width, scale_x, scale_y)
            h = heatmap_at(
                x, y, landmarks_ptr, visible_ptr, weights_ptr, sample, count, decay, MAXIMUM, BLOCK_N, BLOCK_K, T
            )
        else:
            h = tl.load(heatmap_ptr + base + cells, mask=cells < hw, other=0.0)
        tl.store(plane_ptr + base + cells, h, mask=cells < hw)
        totals += tl.where(cells < hw, h, 0.0).to(tl.float64)
        peaks = tl.maximum(peaks, tl.where(cells < hw, h, float("-inf")))
    total = tl.sum(totals, axis=0)
    inverse = 1.0 / heatmap_divisor(total, tl.max(peaks, axis=0), NORMALIZE)
    mean = total / hw
    tl.debug_barrier()

    # 2. Its variance, and the heatmap centred and divided.
    squares = tl.zeros([BLOCK_N], tl.float64)
    for block in range(0, hw, BLOCK_N):
        cells = block + tl.arange(0, BLOCK_N)
        h = tl.load(plane_ptr + base + cells, mask=cells < hw, other=0.0).to(tl.float64)
        centred = tl.where(cells < hw, h - mean, 0.0)
        squares += centred * centred
        tl.debug_barrier()  # all of the block is read before any is written
        tl.store(plane_ptr + base + cells, centred * inverse, mask=cells < hw)
    variance = tl.sum(squares, axis=0) / hw

    # 3. The scale of the scores and the sample's weight.
    annotated = 1
    if landmarks_ptr is not None:
        annotated = any_landmark(landmarks_ptr, visible_ptr, sample, count, BLOCK_K, T)
    terms = tl.cast(hw, tl.float64)
    tl.store(prior_ptr + 2 * sample, score_scale(variance * inverse * inverse, terms, PEARSON, SCALE))
    tl.store(prior_ptr + 2 * sample + 1, sample_weight(sample_weight_ptr, sample, annotated, mean, variance, PEARSON))


@triton.jit
def each_forward_kernel(
    activation_ptr,  # [B, C, H, W] in place, NCHW or channels_last; None where it is not read
    gradient_ptr,  # likewise
    plane_ptr,  # [B, H, W]: h - mean(h)
    prior_ptr,  # [B, 2] float64
    loss_ptr,  # [] or [B]
    coefficients_ptr,  # [B, n, 3]
    factor_ptr,  # [B]
    shares_ptr,  # [B, splits] float64, workspace: each program's sum of scores
    scores_ptr,  # [B, 2] float64, workspace
    counters_ptr,  # [B + 1] int32 zeros, left at zero
    batch,
    channels_v,  # C / VECTOR_C
    used,  # n
    hw_v,  # H * W / VECTOR_HW
    channels_per_split,
    splits,
    KIND: tl.constexpr,
    ABSOLUTE: tl.constexpr,
    REDUCTION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    VECTOR_C: tl.constexpr,
    VECTOR_HW: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    T: tl.constexpr,
):
    channels = channels_v * VECTOR_C
    hw = hw_v * VECTOR_HW
    sample = (tl.program_id(0) // splits).to(tl.int64)
    split = tl.program_id(0) % splits
    sample_base = sample * channels * hw
    terms = tl.cast(hw, tl.float64)
    scale = tl.load(prior_ptr + 2 * sample)
    weight = tl.load(prior_ptr + 2 * sample + 1)
    dead = weight == 0.0

    first_channel = split * channels_per_split
    last_channel = tl.minimum(first_channel + channels_per_split, used)
    score_total = tl.zeros([BLOCK_C], tl.float64)
    for first in range(first_channel, last_channel, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        taking_part = c < last_channel
        # channels_last reads whole vectors of channels, then drops what takes no part.
        loadable = c < (last_channel + (VECTOR_C - 1)) // VECTOR_C * VECTOR_C if CHANNELS_LAST else taking_part
        stride_c = 1 if CHANNELS_LAST else hw
        stride_n = channels if CHANNELS_LAST else 1
        column = sample_base + c.to(tl.int64) * stride_c  # [BLOCK_C]

        # 1. Moments about the channel's first element.
        f0, g0 = load_layer(activation_ptr, gradient_ptr, column, loadable, KIND, T)
        pivot = attribute(f0, g0, KIND, ABSOLUTE)
        sums = tl.zeros([BLOCK_C], tl.float64)
        squares = tl.zeros([BLOCK_C], tl.float64)
        products = tl.zeros([BLOCK_C], tl.float64)
        for block in range(0, hw, BLOCK_N):
            cells = block + tl.arange(0, BLOCK_N)
            mask = loadable[:, None] & (cells < hw)[None, :]
            offset = column[:, None] + (cells * stride_n)[None, :]
            f, g = load_layer(activation_ptr, gradient_ptr, offset, mask, KIND, T)
            d = tl.where(mask, attribute(f, g, KIND, ABSOLUTE) - pivot[:, None], 0.0)
            h = tl.load(plane_ptr + sample * hw + cells, mask=cells < hw, other=0.0)
            sums += tl.sum(d, axis=1).to(tl.float64)
            squares += sum_of_squares(d, 1)
            products += tl.sum(d * h[None, :], axis=1).to(tl.float64)
        deviation = sums / terms
        mean = pivot.to(tl.float64) + deviation
        variance = squares / terms - deviation * deviation

        # 2. Each channel's score and derivative, its share 1/n of the sample's score included.
        score, slope, curve = score_and_slopes(mean, variance, products / terms, scale, terms)
        part = 1.0 / tl.cast(used, tl.float64)
        triple = coefficients_ptr + 3 * (sample * used + c)
        tl.store(triple, tl.where(dead, 0.0, slope * part), mask=taking_part)
        tl.store(triple + 1, tl.where(dead, 0.0, curve * part), mask=taking_part)
        tl.store(triple + 2, tl.where(dead, 0.0, mean), mask=taking_part)
        score_total += tl.where(taking_part, score * part, 0.0)
    tl.store(shares_ptr + sample * splits + split, tl.sum(score_total, axis=0))

    # 3. The last program of the sample adds the shares; the last of the batch reduces.
    if is_last(counters_ptr + sample, splits):
        total = tl.zeros([BLOCK_C], tl.float64)
        for first in range(0, splits, BLOCK_C):
            s = first + tl.arange(0, BLOCK_C)
            total += tl.load(shares_ptr + sample * splits + s, mask=s < splits, other=0.0)
        score = tl.where(dead, 0.0, tl.sum(total, axis=0))
        store_sample(loss_ptr, factor_ptr, scores_ptr, sample, score, weight, REDUCTION)
        if REDUCTION != NONE:  # noqa: SIM102 - a kernel must not call is_last in the other case
            if is_last(counters_ptr + batch, batch):
                reduce_batch(loss_ptr, factor_ptr, scores_ptr, batch, REDUCTION, 256)

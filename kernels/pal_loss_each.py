# mypy: allow-untyped-defs
"""Triton: the loss of the strategy "each" in one launch.

Scoring a channel needs the whole heatmap before the channel is read, so every program computes all of it: some thousand
exponentials for a layer's map. The programs of a sample write identical bits to the same addresses, so it does not
matter whose values a program reads back. The last program of the sample centres the heatmap and adds the scores.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attribution import attribute, attribution_at, load_layer, median_of_three, sum_of_squares
from .gaussians import count_valid_landmarks, exact, is_last, write_heatmap
from .score import (
    NONE,
    clamped,
    heatmap_divisor,
    heatmap_factor,
    reduce_batch,
    sample_weight,
    score_and_slopes,
    score_scale,
    store_sample,
)


@triton.jit(do_not_specialize=["batch", "splits", "steps"])
def each_forward_kernel(
    activation_ptr,  # [B, C, H, W] in place, NCHW or channels_last; None where it is not read
    gradient_ptr,  # likewise
    heatmap_ptr,  # [B, H, W] or None
    landmarks_ptr,  # [B, K, 2] or None
    visible_ptr,  # [B, K] or None
    weights_ptr,  # [B, K] or None
    sample_weight_ptr,  # [B] or None
    loss_ptr,  # [] or [B]
    plane_ptr,  # [B, H, W]: the landmarks' heatmap, finally (h - mean(h)) * factor
    coefficients_ptr,  # [B, n, 3]
    factor_ptr,  # [B]
    partials_ptr,  # [B, splits] float64, workspace: each program's partial sum of scores
    scores_ptr,  # [B, 2] float64, workspace
    tickets_ptr,  # [B + 1] int32 arrival counters: zero on entry and on exit
    batch,
    channels_v,  # C / VECTOR_C
    count,  # n
    cells_v,  # H * W / VECTOR_CELLS
    width,
    landmarks,  # K
    steps,  # of BLOCK_C channels
    splits,
    step_x,
    step_x_low,
    step_y,
    step_y_low,
    falloff,
    falloff_low,
    KIND: tl.constexpr,
    ABSOLUTE: tl.constexpr,
    PEARSON: tl.constexpr,
    SCALE: tl.constexpr,
    REDUCTION: tl.constexpr,
    MAXIMUM: tl.constexpr,
    NORMALIZE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    VECTOR_C: tl.constexpr,
    VECTOR_CELLS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,  # rows of a tile of the heatmap
    BLOCK_W: tl.constexpr,  # its columns
    T: tl.constexpr,
):
    channels = channels_v * VECTOR_C
    cells = cells_v * VECTOR_CELLS
    sample = (tl.program_id(0) // splits).to(tl.int64)
    split = tl.program_id(0) % splits
    sample_base = sample * channels * cells
    plane_base = sample * cells
    terms = tl.cast(cells, tl.float64)

    # 1. The heatmap, its moments and its divisor.
    annotated = 1
    if landmarks_ptr is not None:
        write_heatmap(
            plane_ptr, landmarks_ptr, visible_ptr, weights_ptr, sample, cells, width, landmarks, 0, 1,
            exact(step_x, step_x_low, T), exact(step_y, step_y_low, T), exact(falloff, falloff_low, T),
            MAXIMUM, BLOCK_H, BLOCK_W, T,
        )  # fmt: skip
        annotated = count_valid_landmarks(landmarks_ptr, visible_ptr, sample, landmarks, T)
        tl.debug_barrier()
    h_ptr = plane_ptr if landmarks_ptr is not None else heatmap_ptr
    totals = tl.zeros([1024], tl.float64)
    peaks = tl.full([1024], float("-inf"), T)
    for block in range(0, cells, 1024):
        cell = block + tl.arange(0, 1024)
        h = tl.load(h_ptr + plane_base + cell, mask=cell < cells, other=0.0)
        totals += h.to(tl.float64)
        peaks = tl.maximum(peaks, tl.where(cell < cells, h, float("-inf")))
    total_h = tl.sum(totals, axis=0)
    mean_h = total_h / cells
    powers = tl.zeros([1024], tl.float64)
    for block in range(0, cells, 1024):
        cell = block + tl.arange(0, 1024)
        h = tl.load(h_ptr + plane_base + cell, mask=cell < cells, other=0.0)
        centred = tl.where(cell < cells, h.to(tl.float64) - mean_h, 0.0)
        powers += centred * centred
    var_h = tl.sum(powers, axis=0) / cells
    factor = heatmap_factor(heatmap_divisor(total_h, tl.max(peaks, axis=0), NORMALIZE), var_h, PEARSON)
    scale = score_scale(terms, PEARSON, SCALE)
    weight = sample_weight(sample_weight_ptr, sample, annotated, mean_h, var_h, PEARSON)
    dead = weight == 0.0
    # In the sweep the heatmap is centred by the mean rounded to T and multiplied by the factor bounded to T's range;
    # the remainders are applied to the covariance in float64.
    mean_h_t = mean_h.to(T)
    factor_clamped = clamped(factor, T)
    mean_h_rest = (mean_h - mean_h_t.to(tl.float64)) * factor_clamped
    factor_rest = factor / factor_clamped

    # 2. The program's channels.
    share = 1.0 / tl.cast(count, tl.float64)
    score_total = tl.zeros([BLOCK_C], tl.float64)
    for step in range(split, steps, splits):
        c = step * BLOCK_C + tl.arange(0, BLOCK_C)
        takes_part = c < count
        # channels_last reads whole vectors of channels, then discards channels that do not take part.
        loadable = c < (count + (VECTOR_C - 1)) // VECTOR_C * VECTOR_C if CHANNELS_LAST else takes_part
        stride_c = 1 if CHANNELS_LAST else cells
        stride_n = channels if CHANNELS_LAST else 1
        column = sample_base + c.to(tl.int64) * stride_c  # [BLOCK_C]

        # 3. Moments about the median of each channel's first, middle and last attribution.
        middle = column + tl.cast(cells // 2, tl.int64) * stride_n
        end = column + tl.cast(cells - 1, tl.int64) * stride_n
        pivot = median_of_three(
            attribution_at(activation_ptr, gradient_ptr, column, loadable, KIND, ABSOLUTE, T),
            attribution_at(activation_ptr, gradient_ptr, middle, loadable, KIND, ABSOLUTE, T),
            attribution_at(activation_ptr, gradient_ptr, end, loadable, KIND, ABSOLUTE, T),
        )
        sums = tl.zeros([BLOCK_C], tl.float64)
        squares = tl.zeros([BLOCK_C], tl.float64)
        products = tl.zeros([BLOCK_C], tl.float64)
        for block in range(0, cells, BLOCK_N):
            cell = block + tl.arange(0, BLOCK_N)
            mask = loadable[:, None] & (cell < cells)[None, :]
            offset = column[:, None] + (cell.to(tl.int64) * stride_n)[None, :]
            f, g = load_layer(activation_ptr, gradient_ptr, offset, mask, KIND, T)
            d = tl.where(mask, attribute(f, g, KIND, ABSOLUTE) - pivot[:, None], 0.0)
            h = (tl.load(h_ptr + plane_base + cell, mask=cell < cells, other=0.0) - mean_h_t) * factor_clamped.to(T)
            sums += tl.sum(d, axis=1).to(tl.float64)
            squares += sum_of_squares(d, 1)
            products += tl.sum(d * h[None, :], axis=1).to(tl.float64)
        deviation = sums / terms
        mean = pivot.to(tl.float64) + deviation
        variance = squares / terms - deviation * deviation
        cov = (products / terms - deviation * mean_h_rest) * factor_rest

        # 4. Each channel's score and derivative, including the factor 1/n of the mean over channels.
        score, slope, curve = score_and_slopes(mean, variance, cov, scale, terms)
        triple = coefficients_ptr + 3 * (sample * count + c)
        tl.store(triple, tl.where(dead, 0.0, clamped(slope * share, T)), mask=takes_part)
        tl.store(triple + 1, tl.where(dead, 0.0, clamped(curve, T)), mask=takes_part)
        tl.store(triple + 2, tl.where(dead, 0.0, mean), mask=takes_part)
        score_total += tl.where(takes_part, score * share, 0.0)
    tl.store(partials_ptr + sample * splits + split, tl.sum(score_total, axis=0))

    # 5. The last program of the sample adds the partial sums and centres the heatmap; the last of the batch reduces.
    if is_last(tickets_ptr + sample, splits):
        total = tl.zeros([BLOCK_C], tl.float64)
        for first_partial in range(0, splits, BLOCK_C):
            s = first_partial + tl.arange(0, BLOCK_C)
            total += tl.load(partials_ptr + sample * splits + s, mask=s < splits, other=0.0)
        score_of_sample = tl.where(dead, 0.0, tl.sum(total, axis=0))
        store_sample(loss_ptr, factor_ptr, scores_ptr, sample, score_of_sample, weight, REDUCTION)
        for block in range(0, cells, 1024):
            cell = block + tl.arange(0, 1024)
            h = tl.load(h_ptr + plane_base + cell, mask=cell < cells, other=0.0)
            centred = clamped((h.to(tl.float64) - mean_h) * factor, T)
            tl.debug_barrier()  # the whole block is read before any of it is written
            tl.store(plane_ptr + plane_base + cell, tl.where(dead, 0.0, centred), mask=cell < cells)
        if REDUCTION != NONE:  # noqa: SIM102 - without a reduction the kernel must not call is_last
            if is_last(tickets_ptr + batch, batch):
                reduce_batch(loss_ptr, factor_ptr, scores_ptr, batch, REDUCTION, 256)

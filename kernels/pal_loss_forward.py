# mypy: allow-untyped-defs
"""Triton: the loss of the strategies "mean", "half" and "all" in one launch, from layer to scalar.

Every program sums its share of a sample's attribution over channels. The last program of a sample adds the
shares in a fixed order, scores the map against the heatmap, made here from the landmarks, and writes the
derivative of the score; the last program of the batch reduces. See `is_last` for why that is sound.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attribution import attribute, load_layer, sweep_channels_last, sweep_nchw
from .gaussians import any_landmark, cell_centres, exact, heatmap_at, is_last
from .score import NONE, reduce_batch, score_sample, store_sample


@triton.jit
def combine_shares(
    shares_ptr, share_base, shares, cells, hw, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr, T: tl.constexpr
):
    """The map at `cells` [BLOCK_N]: the sum of a sample's shares [shares, H * W], always in the same order."""
    total = tl.zeros([BLOCK_S, BLOCK_N], T)
    for first in range(0, shares, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)
        mask = (s < shares)[:, None] & (cells < hw)[None, :]
        total += tl.load(shares_ptr + share_base + s[:, None] * hw + cells[None, :], mask=mask, other=0.0)
    return tl.sum(total, axis=0)


@triton.jit
def centred_sums(m, h, cells, hw, mean_m, mean_h):
    """Sums over the block of (m - mean)^2, (h - mean)^2 and their product, float64."""
    inside = cells < hw
    dm = tl.where(inside, m.to(tl.float64) - mean_m, 0.0)
    dh = tl.where(inside, h.to(tl.float64) - mean_h, 0.0)
    return tl.sum(dm * dm, axis=0), tl.sum(dh * dh, axis=0), tl.sum(dm * dh, axis=0)


@triton.jit
def pal_loss_forward_kernel(
    activation_ptr,  # [B, C, H, W] in place, NCHW or channels_last; None where the attribution needs none
    gradient_ptr,  # likewise
    heatmap_ptr,  # [B, H, W], or None; with landmarks and TILED it is the workspace for their heatmap
    landmarks_ptr,  # [B, K, 2] or None
    visible_ptr,  # [B, K] or None
    weights_ptr,  # [B, K] or None
    sample_weight_ptr,  # [B] or None
    loss_ptr,  # [] or [B]
    plane_ptr,  # [B, H, W]
    coefficients_ptr,  # [B, G, 3]
    factor_ptr,  # [B]
    shares_ptr,  # [B, shares, H, W], workspace
    squares_ptr,  # [B, programs_per_sample] float64, workspace of "all"
    scores_ptr,  # [B, 2] float64, workspace: P_b and w_b
    counters_ptr,  # [B + 1] int32 zeros, left at zero
    batch,
    channels_v,  # C / VECTOR_C
    used,  # n
    hw_v,  # H * W / VECTOR_HW
    width,
    count,  # K
    period_v,  # elements of a row of the flat run / VECTOR
    rows_per_split,  # NCHW: rows of a program; channels_last: channels of a program
    splits,
    tiles,
    shares,
    step_x,
    step_x_low,
    step_y,
    step_y_low,
    falloff,
    falloff_low,
    KIND: tl.constexpr,
    ABSOLUTE: tl.constexpr,
    ALL: tl.constexpr,
    PEARSON: tl.constexpr,
    SCALE: tl.constexpr,
    REDUCTION: tl.constexpr,
    MAXIMUM: tl.constexpr,
    NORMALIZE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    EXACT: tl.constexpr,
    VECTOR: tl.constexpr,
    VECTOR_C: tl.constexpr,
    VECTOR_HW: tl.constexpr,
    BLOCK_R: tl.constexpr,  # rows of a tile of the sweep; channels_last: cells
    BLOCK_P: tl.constexpr,  # columns of a tile of the sweep; channels_last: channels
    TILED: tl.constexpr,  # the map does not fit one block of BLOCK_N
    BLOCK_N: tl.constexpr,  # cells of the map at once
    BLOCK_S: tl.constexpr,  # shares at once
    BLOCK_K: tl.constexpr,
    T: tl.constexpr,
):
    channels = channels_v * VECTOR_C
    hw = hw_v * VECTOR_HW
    programs = splits * tiles
    sample = (tl.program_id(0) // programs).to(tl.int64)
    part = tl.program_id(0) % programs
    split = part // tiles
    tile = part % tiles
    sample_base = sample * channels * hw
    share_base = sample * shares * hw

    # 1. The attribution of this program's elements, summed over its channels.
    pivot = 0.0
    if ALL:
        f0, g0 = load_layer(activation_ptr, gradient_ptr, sample_base, sample >= 0, KIND, T)
        pivot = attribute(f0, g0, KIND, ABSOLUTE)
    if CHANNELS_LAST:
        first_cell = tile * BLOCK_R
        columns = first_cell + tl.arange(0, BLOCK_R)
        first = split * rows_per_split
        share, squares = sweep_channels_last(
            activation_ptr,
            gradient_ptr,
            sample_base + tl.cast(first_cell, tl.int64) * channels,
            hw - first_cell,
            channels,
            first,
            tl.minimum(first + rows_per_split, used),
            pivot,
            KIND,
            ABSOLUTE,
            ALL,
            VECTOR,
            EXACT,
            BLOCK_R,
            BLOCK_P,
            T,
        )
        tl.store(shares_ptr + share_base + split * hw + columns, share, mask=columns < hw)
    else:
        period = period_v * VECTOR
        elements = tl.cast(used, tl.int64) * hw
        columns = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        first = split * rows_per_split
        share, squares = sweep_nchw(
            activation_ptr,
            gradient_ptr,
            sample_base,
            columns,
            period,
            first,
            first + rows_per_split,
            elements,
            pivot,
            KIND,
            ABSOLUTE,
            ALL,
            VECTOR,
            EXACT,
            BLOCK_R,
            BLOCK_P,
            T,
        )
        tl.store(shares_ptr + share_base + split * period + columns, share, mask=columns < period)
    if ALL:
        tl.store(squares_ptr + sample * programs + part, tl.sum(squares, axis=0))

    # 2. A large map's heatmap: the programs of the first split make it, each at its own columns.
    scale_x = exact(step_x, step_x_low, T)
    scale_y = exact(step_y, step_y_low, T)
    decay = exact(falloff, falloff_low, T)
    if TILED and landmarks_ptr is not None:  # noqa: SIM102 - constants apart from what varies
        if split == 0:
            for block in range(tile * BLOCK_N, hw, tiles * BLOCK_N):
                cells = block + tl.arange(0, BLOCK_N)
                x, y = cell_centres(cells, width, scale_x, scale_y)
                h = heatmap_at(
                    x, y, landmarks_ptr, visible_ptr, weights_ptr, sample, count, decay, MAXIMUM, BLOCK_N, BLOCK_K, T
                )
                tl.store(heatmap_ptr + sample * hw + cells, h, mask=cells < hw)

    # 3. The last program of the sample goes on.
    if is_last(counters_ptr + sample, programs):
        plane_base = sample * hw
        terms_per_cell = 1.0 / tl.cast(used, tl.float64)
        # 4. Map and heatmap, their means, and the heatmap's divisor.
        cells = tl.arange(0, BLOCK_N)
        if TILED:
            sum_m = tl.zeros([BLOCK_N], tl.float64)
            sum_h = tl.zeros([BLOCK_N], tl.float64)
            peaks = tl.full([BLOCK_N], float("-inf"), T)
            for block in range(0, hw, BLOCK_N):
                cells = block + tl.arange(0, BLOCK_N)
                m = combine_shares(shares_ptr, share_base, shares, cells, hw, BLOCK_S, BLOCK_N, T)
                h = tl.load(heatmap_ptr + plane_base + cells, mask=cells < hw, other=0.0)
                tl.store(plane_ptr + plane_base + cells, m, mask=cells < hw)
                sum_m += m.to(tl.float64)
                sum_h += h.to(tl.float64)
                peaks = tl.maximum(peaks, tl.where(cells < hw, h, float("-inf")))
            total_m = tl.sum(sum_m, axis=0)
            total_h = tl.sum(sum_h, axis=0)
            peak = tl.max(peaks, axis=0)
            tl.debug_barrier()
        else:
            m = combine_shares(shares_ptr, share_base, shares, cells, hw, BLOCK_S, BLOCK_N, T)
            if landmarks_ptr is not None:
                x, y = cell_centres(cells, width, scale_x, scale_y)
                h = heatmap_at(
                    x, y, landmarks_ptr, visible_ptr, weights_ptr, sample, count, decay, MAXIMUM, BLOCK_N, BLOCK_K, T
                )
            else:
                h = tl.load(heatmap_ptr + plane_base + cells, mask=cells < hw, other=0.0)
            total_m = tl.sum(m.to(tl.float64), axis=0)
            total_h = tl.sum(tl.where(cells < hw, h, 0.0).to(tl.float64), axis=0)
            peak = tl.max(tl.where(cells < hw, h, float("-inf")), axis=0)
        mean_m = total_m / hw
        mean_h = total_h / hw

        # 5. Centred second moments.
        if TILED:
            var_m = tl.zeros([], tl.float64)
            var_h = tl.zeros([], tl.float64)
            cov = tl.zeros([], tl.float64)
            for block in range(0, hw, BLOCK_N):
                cells = block + tl.arange(0, BLOCK_N)
                m = tl.load(plane_ptr + plane_base + cells, mask=cells < hw, other=0.0)
                h = tl.load(heatmap_ptr + plane_base + cells, mask=cells < hw, other=0.0)
                mm, hh, mh = centred_sums(m, h, cells, hw, mean_m, mean_h)
                var_m += mm
                var_h += hh
                cov += mh
        else:
            var_m, var_h, cov = centred_sums(m, h, cells, hw, mean_m, mean_h)
        var_m = var_m / hw
        var_h = var_h / hw
        cov = cov / hw

        # 6. From the sum over channels to the group's moments: a map is the mean over its n channels, and
        # "all" has the same mean and covariance with the heatmap, but the variance of every element.
        mean_a = mean_m * terms_per_cell
        cov = cov * terms_per_cell
        if ALL:
            deviations = tl.zeros([BLOCK_N], tl.float64)
            for first_part in range(0, programs, BLOCK_N):
                p = first_part + tl.arange(0, BLOCK_N)
                deviations += tl.load(squares_ptr + sample * programs + p, mask=p < programs, other=0.0)
            offset = mean_a - tl.cast(pivot, tl.float64)
            var_a = tl.sum(deviations, axis=0) * terms_per_cell / hw - offset * offset
            terms = tl.cast(hw, tl.float64) * used
        else:
            var_a = var_m * terms_per_cell * terms_per_cell
            terms = tl.cast(hw, tl.float64)

        # 7. Score, and its derivative: plane and coefficients as OPS defines them.
        annotated = 1
        if landmarks_ptr is not None:
            annotated = any_landmark(landmarks_ptr, visible_ptr, sample, count, BLOCK_K, T)
        score, slope, curve, inverse, weight = score_sample(
            sample_weight_ptr, sample, annotated, mean_a, var_a, mean_h, var_h, cov, total_h, peak, terms,
            PEARSON, SCALE, NORMALIZE,
        )  # fmt: skip
        store_sample(loss_ptr, factor_ptr, scores_ptr, sample, score, weight, REDUCTION)
        live = weight != 0.0
        if ALL:
            tl.store(coefficients_ptr + 3 * sample, slope)
            tl.store(coefficients_ptr + 3 * sample + 1, curve)
            tl.store(coefficients_ptr + 3 * sample + 2, tl.where(live, mean_a, 0.0))
        for block in range(0, hw, BLOCK_N):
            if TILED:
                cells = block + tl.arange(0, BLOCK_N)
                m = tl.load(plane_ptr + plane_base + cells, mask=cells < hw, other=0.0)
                h = tl.load(heatmap_ptr + plane_base + cells, mask=cells < hw, other=0.0)
                tl.debug_barrier()  # plane still holds the map: all of the block is read before any is written
            value = (h.to(tl.float64) - mean_h) * inverse
            if not ALL:
                value = (slope * value + curve * (m.to(tl.float64) * terms_per_cell - mean_a)) * terms_per_cell
            tl.store(plane_ptr + plane_base + cells, tl.where(live, value, 0.0), mask=cells < hw)

        # 8. The last sample of the batch reduces.
        if REDUCTION != NONE:  # noqa: SIM102 - a kernel must not call is_last in the other case
            if is_last(counters_ptr + batch, batch):
                reduce_batch(loss_ptr, factor_ptr, scores_ptr, batch, REDUCTION, 256)

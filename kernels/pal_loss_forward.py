# mypy: allow-untyped-defs
"""Triton: the loss of the strategies "mean", "half" and "all" in one launch, from layer to scalar.

Every program sums its part of a sample's attribution over channels and computes its tiles of the heatmap. The last
program of a sample adds these partial maps in a fixed order, scores the map against the heatmap and writes the
derivative of the score; the last program of the batch reduces. `is_last` explains why this is sound.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attribution import attribution_at, median_of_three, sweep_channels_last, sweep_nchw
from .gaussians import count_valid_landmarks, exact, is_last, write_heatmap
from .score import NONE, clamped, reduce_batch, score_sample, store_sample
from .sweep import NOT_SPECIALISED


@triton.jit
def sum_partials(
    partials_ptr, partials_base, partials, cell, cells, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr, T: tl.constexpr
):
    """The map at `cell` [BLOCK_N]: the sum of a sample's partial maps [partials, H * W], in a fixed order."""
    total = tl.zeros([BLOCK_N], T)
    for first in range(0, partials, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)
        mask = (s < partials)[:, None] & (cell < cells)[None, :]
        total += tl.sum(
            tl.load(partials_ptr + partials_base + s[:, None] * cells + cell[None, :], mask=mask, other=0.0), axis=0
        )
    return total


@triton.jit
def centred_sums(m, h, cell, cells, mean_m, mean_h):
    """Sums over the block of (m - mean)^2, (h - mean)^2 and their product, float64."""
    inside = cell < cells
    dm = tl.where(inside, m.to(tl.float64) - mean_m, 0.0)
    dh = tl.where(inside, h.to(tl.float64) - mean_h, 0.0)
    return tl.sum(dm * dm, axis=0), tl.sum(dh * dh, axis=0), tl.sum(dm * dh, axis=0)


@triton.jit(do_not_specialize=["batch", "partials", *NOT_SPECIALISED])
def pal_loss_forward_kernel(
    activation_ptr,  # [B, C, H, W] in place, NCHW or channels_last; None where it is not read
    gradient_ptr,  # likewise
    heatmap_ptr,  # [B, H, W] or None
    landmarks_ptr,  # [B, K, 2] or None
    visible_ptr,  # [B, K] or None
    weights_ptr,  # [B, K] or None
    sample_weight_ptr,  # [B] or None
    loss_ptr,  # [] or [B]
    plane_ptr,  # [B, H, W]; holds the landmarks' heatmap until it is scored
    coefficients_ptr,  # [B, G, 3]
    factor_ptr,  # [B]
    partials_ptr,  # [B, partials, H, W], workspace
    squares_ptr,  # [B, programs_per_sample] float64, workspace for "all"
    scores_ptr,  # [B, 2] float64, workspace: P_b and w_b
    tickets_ptr,  # [B + 1] int32 arrival counters: zero on entry and on exit
    batch,
    channels_v,  # C / VECTOR_C
    count,  # n
    cells_v,  # H * W / VECTOR_CELLS
    width,
    landmarks,  # K
    period_v,  # elements of a row of the flat run / VECTOR
    steps,  # of a sample: of BLOCK_R rows for NCHW, of BLOCK_P channels for channels_last
    splits,
    tiles,
    partials,
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
    VECTOR_CELLS: tl.constexpr,
    BLOCK_R: tl.constexpr,  # rows of a tile of the sweep; channels_last: cells
    BLOCK_P: tl.constexpr,  # columns of a tile of the sweep; channels_last: channels
    TILED: tl.constexpr,  # the map does not fit in one block of BLOCK_N
    BLOCK_N: tl.constexpr,  # cells of the map per block
    BLOCK_S: tl.constexpr,  # partial maps per block
    BLOCK_H: tl.constexpr,  # rows of a tile of the heatmap
    BLOCK_W: tl.constexpr,  # its columns
    T: tl.constexpr,
):
    channels = channels_v * VECTOR_C
    cells = cells_v * VECTOR_CELLS
    programs = splits * tiles
    sample = (tl.program_id(0) // programs).to(tl.int64)
    part = tl.program_id(0) % programs
    split = part // tiles
    tile = part % tiles
    sample_base = sample * channels * cells
    partials_base = sample * partials * cells
    elements = tl.cast(count, tl.int64) * cells

    # 1. The pivot: the median of the sample's first, middle and last attribution.
    if CHANNELS_LAST:
        middle = tl.cast(cells // 2, tl.int64) * channels + count // 2
        end = tl.cast(cells - 1, tl.int64) * channels + count - 1
    else:
        middle = elements // 2
        end = elements - 1
    always = sample >= 0
    pivot = median_of_three(
        attribution_at(activation_ptr, gradient_ptr, sample_base, always, KIND, ABSOLUTE, T),
        attribution_at(activation_ptr, gradient_ptr, sample_base + middle, always, KIND, ABSOLUTE, T),
        attribution_at(activation_ptr, gradient_ptr, sample_base + end, always, KIND, ABSOLUTE, T),
    )

    # 2. The attribution of this program's elements, minus the pivot, summed over its channels.
    deviations = tl.zeros([], tl.float64)
    if CHANNELS_LAST:
        for first_cell in range(tile * BLOCK_R, cells, tiles * BLOCK_R):
            partial, squares = sweep_channels_last(
                activation_ptr,
                gradient_ptr,
                sample_base + tl.cast(first_cell, tl.int64) * channels,
                cells - first_cell,
                channels,
                count,
                split,
                splits,
                steps,
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
            cell = first_cell + tl.arange(0, BLOCK_R)
            tl.store(partials_ptr + partials_base + split * cells + cell, partial, mask=cell < cells)
            if ALL:
                deviations += tl.sum(squares, axis=0)
    else:
        period = period_v * VECTOR
        columns = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        partial, squares = sweep_nchw(
            activation_ptr,
            gradient_ptr,
            sample_base,
            columns,
            period,
            split,
            splits,
            steps,
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
        tl.store(partials_ptr + partials_base + split * period + columns, partial, mask=columns < period)
        if ALL:
            deviations = tl.sum(squares, axis=0)
    if ALL:
        tl.store(squares_ptr + sample * programs + part, deviations)

    # 3. The program's tiles of the heatmap, into plane.
    if landmarks_ptr is not None:
        write_heatmap(
            plane_ptr, landmarks_ptr, visible_ptr, weights_ptr, sample, cells, width, landmarks, part, programs,
            exact(step_x, step_x_low, T), exact(step_y, step_y_low, T), exact(falloff, falloff_low, T),
            MAXIMUM, BLOCK_H, BLOCK_W, T,
        )  # fmt: skip

    # 4. Only the last program of the sample continues.
    if is_last(tickets_ptr + sample, programs):
        plane_base = sample * cells
        h_ptr = plane_ptr if landmarks_ptr is not None else heatmap_ptr
        terms_per_cell = 1.0 / tl.cast(count, tl.float64)
        # 5. The map and the heatmap, their means, and the heatmap's divisor. If TILED, the map overwrites the first
        # partial map.
        cell = tl.arange(0, BLOCK_N)
        if TILED:
            sum_m = tl.zeros([BLOCK_N], tl.float64)
            sum_h = tl.zeros([BLOCK_N], tl.float64)
            peaks = tl.full([BLOCK_N], float("-inf"), T)
            for block in range(0, cells, BLOCK_N):
                cell = block + tl.arange(0, BLOCK_N)
                m = sum_partials(partials_ptr, partials_base, partials, cell, cells, BLOCK_S, BLOCK_N, T)
                h = tl.load(h_ptr + plane_base + cell, mask=cell < cells, other=0.0)
                tl.debug_barrier()  # the whole block is read before any of it is written
                tl.store(partials_ptr + partials_base + cell, m, mask=cell < cells)
                sum_m += m.to(tl.float64)
                sum_h += h.to(tl.float64)
                peaks = tl.maximum(peaks, tl.where(cell < cells, h, float("-inf")))
            total_m = tl.sum(sum_m, axis=0)
            total_h = tl.sum(sum_h, axis=0)
            peak = tl.max(peaks, axis=0)
            tl.debug_barrier()
        else:
            m = sum_partials(partials_ptr, partials_base, partials, cell, cells, BLOCK_S, BLOCK_N, T)
            h = tl.load(h_ptr + plane_base + cell, mask=cell < cells, other=0.0)
            total_m = tl.sum(m.to(tl.float64), axis=0)
            total_h = tl.sum(h.to(tl.float64), axis=0)
            peak = tl.max(tl.where(cell < cells, h, float("-inf")), axis=0)
        mean_m = total_m / cells
        mean_h = total_h / cells

        # 6. Centred second moments.
        if TILED:
            var_m = tl.zeros([], tl.float64)
            var_h = tl.zeros([], tl.float64)
            cov = tl.zeros([], tl.float64)
            for block in range(0, cells, BLOCK_N):
                cell = block + tl.arange(0, BLOCK_N)
                m = tl.load(partials_ptr + partials_base + cell, mask=cell < cells, other=0.0)
                h = tl.load(h_ptr + plane_base + cell, mask=cell < cells, other=0.0)
                mm, hh, mh = centred_sums(m, h, cell, cells, mean_m, mean_h)
                var_m += mm
                var_h += hh
                cov += mh
        else:
            var_m, var_h, cov = centred_sums(m, h, cell, cells, mean_m, mean_h)
        var_m = var_m / cells
        var_h = var_h / cells

        # 7. From the sum over channels to the group's moments: the map is the mean over its n channels. "all" has the
        # same mean and covariance with the heatmap, but its variance is over all elements.
        above_pivot = mean_m * terms_per_cell
        mean_a = above_pivot + tl.cast(pivot, tl.float64)
        cov = cov * terms_per_cell / cells
        if ALL:
            parts = tl.zeros([BLOCK_N], tl.float64)
            for first_part in range(0, programs, BLOCK_N):
                p = first_part + tl.arange(0, BLOCK_N)
                parts += tl.load(squares_ptr + sample * programs + p, mask=p < programs, other=0.0)
            var_a = tl.sum(parts, axis=0) * terms_per_cell / cells - above_pivot * above_pivot
            terms = tl.cast(cells, tl.float64) * count
        else:
            var_a = var_m * terms_per_cell * terms_per_cell
            terms = tl.cast(cells, tl.float64)

        # 8. The score and its derivative: plane and coefficients as the operator's schema defines them.
        annotated = 1
        if landmarks_ptr is not None:
            annotated = count_valid_landmarks(landmarks_ptr, visible_ptr, sample, landmarks, T)
        score, slope, curve, factor, weight = score_sample(
            sample_weight_ptr, sample, annotated, mean_a, var_a, mean_h, var_h, cov, total_h, peak, terms,
            PEARSON, SCALE, NORMALIZE,
        )  # fmt: skip
        store_sample(loss_ptr, factor_ptr, scores_ptr, sample, score, weight, REDUCTION)
        live = weight != 0.0
        if ALL:
            tl.store(coefficients_ptr + 3 * sample, clamped(slope, T))
            tl.store(coefficients_ptr + 3 * sample + 1, clamped(curve, T))
            tl.store(coefficients_ptr + 3 * sample + 2, tl.where(live, mean_a, 0.0))
        for block in range(0, cells, BLOCK_N):
            if TILED:
                cell = block + tl.arange(0, BLOCK_N)
                m = tl.load(partials_ptr + partials_base + cell, mask=cell < cells, other=0.0)
                h = tl.load(h_ptr + plane_base + cell, mask=cell < cells, other=0.0)
            tl.debug_barrier()  # plane still holds the heatmap: the whole block is read before any of it is written
            value = (h.to(tl.float64) - mean_h) * factor
            if not ALL:
                value = slope * (value + curve * (m.to(tl.float64) - mean_m) * terms_per_cell) * terms_per_cell
            tl.store(plane_ptr + plane_base + cell, tl.where(live, clamped(value, T), 0.0), mask=cell < cells)

        # 9. The last program of the batch reduces.
        if REDUCTION != NONE:  # noqa: SIM102 - without a reduction the kernel must not call is_last
            if is_last(tickets_ptr + batch, batch):
                reduce_batch(loss_ptr, factor_ptr, scores_ptr, batch, REDUCTION, 256)

# mypy: allow-untyped-defs
"""Triton: both gradients of the loss in one launch, from the derivative of each sample's score.

`d = grad_loss * factor * dP/da`, then `df = d |g|`, `dg = d f sign(g)`, or the equivalent for the other attributions. A
sample whose factor is 0 is not read: its gradients are zero, whatever it contains.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attribution import GRAD_INPUT, attribute, load_layer, within
from .sweep import NOT_SPECIALISED

MAP: tl.constexpr = tl.constexpr(0)
EACH: tl.constexpr = tl.constexpr(2)


@triton.jit
def sign(g):
    """-1, 0 or 1; NaN for NaN."""
    one = tl.where(g > 0, 1.0, -1.0).to(g.dtype)
    return tl.where((g > 0) | (g < 0), one, g)


@triton.jit
def store_gradients(
    d_activation_ptr, d_gradient_ptr, offset, mask, live, d, f, g, KIND: tl.constexpr, ABSOLUTE: tl.constexpr
):
    """Writes both gradients at `offset`, zero where not `live`; the pointer is None for one that is not needed."""
    if d_activation_ptr is not None:
        if KIND == GRAD_INPUT:
            df = d * (tl.abs(g) if ABSOLUTE else g)
        else:
            df = d
        tl.store(d_activation_ptr + offset, tl.where(live, df, 0.0), mask=mask)
    if d_gradient_ptr is not None:
        dg = d * f if KIND == GRAD_INPUT else d
        if ABSOLUTE:
            dg = dg * sign(g)
        tl.store(d_gradient_ptr + offset, tl.where(live, dg, 0.0), mask=mask)


@triton.jit
def write_rows(
    activation_ptr,
    gradient_ptr,
    coefficients_ptr,  # the sample's, [n, 3]; read only under "each"
    d_activation_ptr,
    d_gradient_ptr,
    origin,  # int64 offset of the first row
    offsets,  # of a tile's elements, relative to its first row
    inside,  # mask of those that lie in the layer's rows
    plane,  # its values at these elements
    split,
    splits,
    steps,  # of BLOCK rows
    stride,  # between rows, in elements
    channels,
    scored,  # channels that take part: n, or 0
    cells,
    grad,
    slope,
    curve,
    mean,
    KIND: tl.constexpr,
    ABSOLUTE: tl.constexpr,
    GROUPING: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    VECTOR: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK: tl.constexpr,  # rows per step; channels_last: channels
    WIDTH: tl.constexpr,
    T: tl.constexpr,
):
    """Writes the gradients of every `splits`-th step of a program's columns, from the end: see sweep.py.

    Reads extend to a whole vector, live elements to the last channel that takes part, writes to channel C.
    """
    for step in range(split, steps, splits):
        row = (steps - 1 - step) * BLOCK
        position = tl.cast(row, tl.int64) * stride
        if CHANNELS_LAST:
            channel = row + tl.arange(0, WIDTH)[None, :]
            mask = inside & (channel < channels)
            live = inside & (channel < scored)
            readable = inside & (channel < (scored + (VECTOR - 1)) // VECTOR * VECTOR)
        else:
            terms = scored.to(tl.int64) * cells
            loadable = (terms + (VECTOR - 1)) // VECTOR * VECTOR
            mask = inside & (offsets < within(tl.cast(channels, tl.int64) * cells - position, BLOCK * stride))
            live = inside & (offsets < within(terms - position, BLOCK * stride))
            readable = inside & (offsets < within(loadable - position, BLOCK * stride))
            channel = row * (stride // cells) + offsets // cells
        if EXACT:
            readable = live
        f, g = load_layer(activation_ptr, gradient_ptr, origin + position + offsets, readable, KIND, T)
        if GROUPING == EACH:
            triple = coefficients_ptr + 3 * channel
            centred = attribute(f, g, KIND, ABSOLUTE) - tl.load(triple + 2, mask=live, other=0.0)
            bend = tl.load(triple + 1, mask=live, other=0.0) * centred
            d = grad * tl.load(triple, mask=live, other=0.0) * (plane + bend)
        elif GROUPING == MAP:
            d = slope * plane
        else:
            d = slope * (plane + curve * (attribute(f, g, KIND, ABSOLUTE) - mean))
        store_gradients(
            d_activation_ptr, d_gradient_ptr, origin + position + offsets, mask, live, d, f, g, KIND, ABSOLUTE
        )


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def pal_loss_backward_kernel(
    grad_loss_ptr,  # [] or [B], of any stride
    activation_ptr,  # [B, C, H, W] in place, NCHW or channels_last; None where it is not read
    gradient_ptr,  # likewise
    plane_ptr,  # [B, H, W]
    coefficients_ptr,  # [B, G, 3]
    factor_ptr,  # [B]
    d_activation_ptr,  # [B, C, H, W] in the format of the inputs, or None
    d_gradient_ptr,  # likewise
    grad_loss_stride,
    channels_v,  # C / VECTOR_C
    count,  # n
    cells_v,  # H * W / VECTOR_CELLS
    period_v,  # elements of a row of the flat run / VECTOR
    steps,  # of a sample: of BLOCK_R rows for NCHW, of BLOCK_P channels for channels_last
    splits,
    tiles,
    KIND: tl.constexpr,
    ABSOLUTE: tl.constexpr,
    GROUPING: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    VECTOR: tl.constexpr,
    VECTOR_C: tl.constexpr,
    VECTOR_CELLS: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    T: tl.constexpr,
):
    channels = channels_v * VECTOR_C
    cells = cells_v * VECTOR_CELLS
    programs = splits * tiles
    # From the end, as in a sample: if not all programs run at once, the forward read the last samples last.
    sample = (tl.num_programs(0) // programs - 1 - tl.program_id(0) // programs).to(tl.int64)
    part = tl.program_id(0) % programs
    split = part // tiles
    tile = part % tiles
    sample_base = sample * channels * cells

    # 1. Values shared by all elements of the sample. If its factor is 0, none of its channels take part.
    factor = tl.load(factor_ptr + sample).to(T)
    scored = tl.where(factor != 0.0, count, 0)
    grad = tl.load(grad_loss_ptr + sample * grad_loss_stride).to(T) * factor
    slope = grad
    curve = tl.zeros([], T)
    mean = tl.zeros([], T)
    if GROUPING != MAP and GROUPING != EACH:
        slope = grad * tl.load(coefficients_ptr + 3 * sample)
        curve = tl.load(coefficients_ptr + 3 * sample + 1)
        mean = tl.load(coefficients_ptr + 3 * sample + 2)

    # 2. The program's tiles, rows x columns, and their position in the plane.
    if CHANNELS_LAST:
        cell_blocks = (cells + (BLOCK_R - 1)) // BLOCK_R
        offsets = tl.arange(0, BLOCK_R)[:, None] * channels + tl.arange(0, BLOCK_P)[None, :]
        for block in range(tile, cell_blocks, tiles):
            first_cell = (cell_blocks - 1 - block) * BLOCK_R
            cell = first_cell + tl.arange(0, BLOCK_R)
            inside = cell < cells
            write_rows(
                activation_ptr,
                gradient_ptr,
                coefficients_ptr + 3 * sample * count,
                d_activation_ptr,
                d_gradient_ptr,
                sample_base + tl.cast(first_cell, tl.int64) * channels,
                offsets,
                inside[:, None],
                tl.load(plane_ptr + sample * cells + cell, mask=inside, other=0.0)[:, None],
                split,
                splits,
                steps,
                1,
                channels,
                scored,
                cells,
                grad,
                slope,
                curve,
                mean,
                KIND,
                ABSOLUTE,
                GROUPING,
                CHANNELS_LAST,
                VECTOR,
                EXACT,
                BLOCK_P,
                BLOCK_P,
                T,
            )
    else:
        period = period_v * VECTOR
        columns = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = columns < period
        write_rows(
            activation_ptr,
            gradient_ptr,
            coefficients_ptr + 3 * sample * count,
            d_activation_ptr,
            d_gradient_ptr,
            sample_base,
            tl.arange(0, BLOCK_R)[:, None] * period + columns[None, :],
            inside[None, :],
            tl.load(plane_ptr + sample * cells + columns % cells, mask=inside, other=0.0)[None, :],
            split,
            splits,
            steps,
            period,
            channels,
            scored,
            cells,
            grad,
            slope,
            curve,
            mean,
            KIND,
            ABSOLUTE,
            GROUPING,
            CHANNELS_LAST,
            VECTOR,
            EXACT,
            BLOCK_R,
            BLOCK_P,
            T,
        )

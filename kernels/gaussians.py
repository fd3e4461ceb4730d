# mypy: allow-untyped-defs
"""Device functions that the Triton kernels share: landmarks, their Gaussians, and the last-program pattern."""

from __future__ import annotations

import triton
import triton.language as tl

#: Undoes the scaling of `add_product`.
PRODUCT_SCALE = tl.constexpr(2.0**-30)


@triton.jit
def exact(high, low, T: tl.constexpr):
    """A double from the host, passed as the sum of two float32 values, in type T."""
    return tl.full((), high, T) + tl.full((), low, T)


@triton.jit
def is_last(ticket_ptr, programs):
    """Whether this program is the last of `programs` to arrive; if so, it sees everything the others have stored.

    Contract: every program calls this once, after its stores. The barrier orders the stores of all threads
    before the program's single atomic; its acquire-release semantics at gpu scope order them before the loads
    of the last program. The atomic is an integer one, and the result does not depend on which program is last.
    The last program resets the arrival counter to zero for the next launch.
    """
    tl.debug_barrier()
    arrived = tl.atomic_add(ticket_ptr, 1, sem="acq_rel", scope="gpu")
    last = arrived == programs - 1
    if last:
        tl.store(ticket_ptr, 0)
    tl.debug_barrier()
    return last


@triton.jit
def load_landmarks(landmarks_ptr, visible_ptr, weights_ptr, sample, k, count, T: tl.constexpr):
    """Landmarks `k` of one sample: x, y, weight, and a mask of the valid ones; all are zero where invalid.

    landmarks [B, K, 2], visible [B, K] or None, weights [B, K] or None; `sample` int64.
    """
    inside = k < count
    index = sample * count + k
    x = tl.load(landmarks_ptr + 2 * index, mask=inside, other=0.0).to(T)
    y = tl.load(landmarks_ptr + 2 * index + 1, mask=inside, other=0.0).to(T)
    # Comparisons with NaN are false, so this also excludes NaN coordinates.
    valid = inside & (tl.abs(x) < float("inf")) & (tl.abs(y) < float("inf"))
    if visible_ptr is not None:
        valid = valid & (tl.load(visible_ptr + index, mask=inside, other=0) != 0)
    x = tl.where(valid, x, 0.0)
    y = tl.where(valid, y, 0.0)
    if weights_ptr is not None:
        w = tl.load(weights_ptr + index, mask=valid, other=0.0).to(T)
    else:
        w = tl.where(valid, 1.0, 0.0).to(T)
    return x, y, w, valid


@triton.jit
def count_valid_landmarks(landmarks_ptr, visible_ptr, sample, count, T: tl.constexpr):
    """The number of valid landmarks of the sample."""
    found = tl.zeros([128], tl.int32)
    for first in range(0, count, 128):
        k = first + tl.arange(0, 128)
        _, _, _, valid = load_landmarks(landmarks_ptr, visible_ptr, None, sample, k, count, T)
        found += valid.to(tl.int32)
    return tl.sum(found, axis=0)


@triton.jit
def split_float16(values):
    """Values of magnitude up to 1, times 2^15, as high + low in float16; error 2^-22 relative or 2^-40 absolute."""
    values = values * 32768.0
    high = values.to(tl.float16)
    return high, (values - high.to(tl.float32)).to(tl.float16)


@triton.jit
def add_product(rows, columns, h):
    """h [M, N] + 2^30 times the product of rows [M, K] and columns [N, K], float32 of magnitude up to 1.

    Split into float16 parts this takes three products: low times low, below 2^-22, is left out. Smaller terms are
    accumulated first.
    """
    rows_high, rows_low = split_float16(rows)
    columns_high, columns_low = split_float16(columns)
    h = tl.dot(rows_low, tl.trans(columns_high), h)
    h = tl.dot(rows_high, tl.trans(columns_low), h)
    return tl.dot(rows_high, tl.trans(columns_high), h)


@triton.jit
def heatmap_tile(
    i,
    j,
    landmarks_ptr,
    visible_ptr,
    weights_ptr,
    sample,
    count,
    step_x,
    step_y,
    falloff,
    MAXIMUM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    T: tl.constexpr,
):
    """The unnormalised heatmap at rows i [BLOCK_H] and columns j [BLOCK_W] (at least 16 of each).

    A sum of Gaussians is a product of two thin matrices, [H, K] by [K, W]: a tile costs K * (rows + columns)
    exponentials instead of K * rows * columns, and the product runs on tensor cores.
    """
    x = (j.to(T) + 0.5) * step_x - 0.5  # [BLOCK_W]
    y = (i.to(T) + 0.5) * step_y - 0.5  # [BLOCK_H]
    h = tl.full([BLOCK_H, BLOCK_W], float("-inf") if MAXIMUM else 0.0, T)
    if MAXIMUM or h.dtype == tl.float64:
        for k in range(count):
            xk, yk, wk, valid = load_landmarks(landmarks_ptr, visible_ptr, weights_ptr, sample, k, count, T)
            dy = y - yk
            dx = x - xk
            term = (wk * tl.exp(falloff * (dy * dy)))[:, None] * tl.exp(falloff * (dx * dx))[None, :]
            if MAXIMUM:
                h = tl.where(valid & (term > h), term, h)
            else:
                h += tl.where(valid, term, 0.0)
        if MAXIMUM:
            h = tl.where(count_valid_landmarks(landmarks_ptr, visible_ptr, sample, count, T) > 0, h, 0.0)
    else:
        for first in range(0, count, 16):
            k = first + tl.arange(0, 16)
            xk, yk, wk, _ = load_landmarks(landmarks_ptr, visible_ptr, weights_ptr, sample, k, count, T)
            dy = y[:, None] - yk[None, :]
            dx = x[:, None] - xk[None, :]
            gx = tl.exp(falloff * (dx * dx))  # [BLOCK_W, 16]
            if weights_ptr is None:
                gy = wk[None, :] * tl.exp(falloff * (dy * dy))  # [BLOCK_H, 16]; invalid landmarks have weight 0
                h = add_product(gy, gx, h)
            else:
                unit = tl.max(tl.abs(wk), axis=0)
                unit = tl.where(unit == 0.0, 1.0, unit)
                gy = (wk / unit)[None, :] * tl.exp(falloff * (dy * dy))
                h += add_product(gy, gx, tl.zeros([BLOCK_H, BLOCK_W], T)) * PRODUCT_SCALE * unit
        if weights_ptr is None:
            h = h * PRODUCT_SCALE
    return h


@triton.jit
def write_heatmap(
    plane_ptr,
    landmarks_ptr,
    visible_ptr,
    weights_ptr,
    sample,
    cells,
    width,
    count,
    first_tile,
    every,
    step_x,
    step_y,
    falloff,
    MAXIMUM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    T: tl.constexpr,
):
    """Writes tiles first_tile, first_tile + every, ... of a sample's unnormalised heatmap to plane [B, H, W]."""
    height = cells // width
    tiles_w = (width + BLOCK_W - 1) // BLOCK_W
    tiles = (height + BLOCK_H - 1) // BLOCK_H * tiles_w
    for tile in range(first_tile, tiles, every):
        i = tile // tiles_w * BLOCK_H + tl.arange(0, BLOCK_H)
        j = tile % tiles_w * BLOCK_W + tl.arange(0, BLOCK_W)
        h = heatmap_tile(
            i, j, landmarks_ptr, visible_ptr, weights_ptr, sample, count, step_x, step_y, falloff,
            MAXIMUM, BLOCK_H, BLOCK_W, T,
        )  # fmt: skip
        inside = (i < height)[:, None] & (j < width)[None, :]
        tl.store(plane_ptr + sample * cells + i[:, None] * width + j[None, :], h, mask=inside)


@triton.jit
def heatmap_at(
    x,
    y,
    landmarks_ptr,
    visible_ptr,
    weights_ptr,
    sample,
    count,
    falloff,
    MAXIMUM: tl.constexpr,
    CELLS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    T: tl.constexpr,
):
    """The unnormalised heatmap at cell centres x, y [CELLS], in image pixels.

    `sum_k w_k exp(falloff * distance^2)`, or the maximum of the terms; 0 without landmarks.
    Landmarks are processed in blocks, [BLOCK_K, CELLS], so that their loads overlap.
    """
    if MAXIMUM:
        h = tl.full([CELLS], float("-inf"), T)
    else:
        h = tl.zeros([CELLS], T)
    for first in range(0, count, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        xk, yk, wk, valid = load_landmarks(landmarks_ptr, visible_ptr, weights_ptr, sample, k, count, T)
        dx = x[None, :] - xk[:, None]
        dy = y[None, :] - yk[:, None]
        term = wk[:, None] * tl.exp(falloff * (dx * dx + dy * dy))  # [BLOCK_K, CELLS]
        if MAXIMUM:
            h = tl.maximum(h, tl.max(tl.where(valid[:, None], term, float("-inf")), axis=0))
        else:
            h += tl.sum(tl.where(valid[:, None], term, 0.0), axis=0)
    if MAXIMUM:
        present = count_valid_landmarks(landmarks_ptr, visible_ptr, sample, count, T)
        h = tl.where(present > 0, h, 0.0)
    return h


@triton.jit
def cell_centres(cell, width, step_x, step_y):
    """The image coordinates (x, y) of flat cells of an [H, W] map: x = `(j + 0.5) * IW / W - 0.5`, y likewise."""
    x = ((cell % width).to(step_x.dtype) + 0.5) * step_x - 0.5
    y = ((cell // width).to(step_y.dtype) + 0.5) * step_y - 0.5
    return x, y

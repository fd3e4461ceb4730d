# mypy: allow-untyped-defs
"""Triton: elementwise attribution, and its sum over channels in both memory formats.

Each sample is read once. NCHW is one flat run of n * H * W elements, read as rows of `period` elements: the
smallest number of whole channels whose length is a multiple of a vector, repeated until it fills a block. Every
row therefore starts aligned for any H * W, and a column always maps to the same cell. channels_last is read
as [cells, channels].
"""

from __future__ import annotations

import triton
import triton.language as tl

GRAD_INPUT: tl.constexpr = tl.constexpr(0)
GRAD: tl.constexpr = tl.constexpr(1)


@triton.jit
def within(left, most):
    """The int64 count `left` clamped to `most`, the size of a tile, as an int32 bound for offsets within the tile."""
    return tl.minimum(left, most).to(tl.int32)


@triton.jit
def load_layer(activation_ptr, gradient_ptr, offset, mask, KIND: tl.constexpr, T: tl.constexpr):
    """Activation and gradient at `offset`. If KIND uses only one of them, only that one is read and returned twice."""
    if KIND == GRAD_INPUT:
        f = tl.load(activation_ptr + offset, mask=mask, other=0.0).to(T)
        g = tl.load(gradient_ptr + offset, mask=mask, other=0.0).to(T)
    elif KIND == GRAD:
        g = tl.load(gradient_ptr + offset, mask=mask, other=0.0).to(T)
        f = g
    else:
        f = tl.load(activation_ptr + offset, mask=mask, other=0.0).to(T)
        g = f
    return f, g


@triton.jit
def attribute(f, g, KIND: tl.constexpr, ABSOLUTE: tl.constexpr):
    """a: |g| f or g f; |g| or g; f."""
    if KIND == GRAD_INPUT:
        a = (tl.abs(g) if ABSOLUTE else g) * f
    elif KIND == GRAD:
        a = tl.abs(g) if ABSOLUTE else g
    else:
        a = f
    return a


@triton.jit
def attribution_at(
    activation_ptr, gradient_ptr, offset, mask, KIND: tl.constexpr, ABSOLUTE: tl.constexpr, T: tl.constexpr
):
    """a at `offset`."""
    f, g = load_layer(activation_ptr, gradient_ptr, offset, mask, KIND, T)
    return attribute(f, g, KIND, ABSOLUTE)


@triton.jit
def median_of_three(a, b, c):
    """The pivot: a typical attribution, robust to one outlier.

    Sums are taken of the deviations from the pivot, so that a large mean causes no cancellation.
    """
    return tl.maximum(tl.minimum(a, b), tl.minimum(tl.maximum(a, b), c))


@triton.jit
def sum_of_squares(d, AXIS: tl.constexpr):
    """`sum d^2` over AXIS in float64, whatever the magnitude of d.

    float32 would underflow and overflow (attributions of 1e-24 and of 1e15 are in range), and float64
    arithmetic on every element is slow on most GPUs: the values along AXIS are scaled by one power of two instead.
    """
    if d.dtype == tl.float64:
        total = tl.sum(d * d, axis=AXIS)
    else:
        largest = tl.max(tl.abs(d), axis=AXIS)
        exponent = largest.to(tl.int32, bitcast=True) & 0x7F800000
        exponent = tl.minimum(tl.maximum(exponent, 0x01000000), 0x7E000000)  # 2^-125 .. 2^125
        scale = exponent.to(tl.float32, bitcast=True)
        inverse = (0x7F000000 - exponent).to(tl.float32, bitcast=True)
        s = d * tl.expand_dims(inverse, AXIS)
        wide = scale.to(tl.float64)
        total = tl.sum(s * s, axis=AXIS).to(tl.float64) * (wide * wide)
    return total


@triton.jit
def sweep_nchw(
    activation_ptr,
    gradient_ptr,
    start,
    columns,
    period,
    split,
    splits,
    steps,
    terms,
    pivot,
    KIND: tl.constexpr,
    ABSOLUTE: tl.constexpr,
    SQUARES: tl.constexpr,
    VECTOR: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    T: tl.constexpr,
):
    """Sums every `splits`-th step of BLOCK_R rows of a sample's flat run at `columns` [BLOCK_P].

    start: int64 offset of the sample; split: the first step; terms: n * H * W, int64.
    Returns: the sums of a - pivot [BLOCK_P] and of its square [BLOCK_P] float64 (zeros unless SQUARES).
    """
    rows = tl.arange(0, BLOCK_R)
    offsets = rows[:, None] * period + columns[None, :]
    inside = (columns < period)[None, :]
    loadable = (terms + (VECTOR - 1)) // VECTOR * VECTOR
    total = tl.zeros([BLOCK_R, BLOCK_P], T)
    squares = tl.zeros([BLOCK_P], tl.float64)
    for step in range(split, steps, splits):
        position = tl.cast(step * BLOCK_R, tl.int64) * period
        left = within(loadable - position, BLOCK_R * period)
        mask = inside & (offsets < left)
        f, g = load_layer(activation_ptr, gradient_ptr, start + position + offsets, mask, KIND, T)
        if not EXACT:
            # The last vector of the run may extend into channel n, which does not take part.
            mask = inside & (offsets < within(terms - position, BLOCK_R * period))
        d = tl.where(mask, attribute(f, g, KIND, ABSOLUTE) - pivot, 0.0)
        total += d
        if SQUARES:
            squares += sum_of_squares(d, 0)
    return tl.sum(total, axis=0), squares


@triton.jit
def sweep_channels_last(
    activation_ptr,
    gradient_ptr,
    start,
    cells_left,
    channels,
    count,
    split,
    splits,
    steps,
    pivot,
    KIND: tl.constexpr,
    ABSOLUTE: tl.constexpr,
    SQUARES: tl.constexpr,
    VECTOR: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_C: tl.constexpr,
    T: tl.constexpr,
):
    """Sums every `splits`-th step of BLOCK_C channels of BLOCK_I cells.

    start: int64 offset of the first cell; split: the first step; count: n.
    Returns: the sums of a - pivot [BLOCK_I] and of its square [BLOCK_I] float64 (zeros unless SQUARES).
    """
    cell = tl.arange(0, BLOCK_I)
    inside = (cell < cells_left)[:, None]
    loadable = (count + (VECTOR - 1)) // VECTOR * VECTOR
    total = tl.zeros([BLOCK_I, BLOCK_C], T)
    squares = tl.zeros([BLOCK_I], tl.float64)
    for step in range(split, steps, splits):
        c = step * BLOCK_C + tl.arange(0, BLOCK_C)
        mask = inside & (c < loadable)[None, :]
        f, g = load_layer(activation_ptr, gradient_ptr, start + cell[:, None] * channels + c[None, :], mask, KIND, T)
        if not EXACT:
            mask = inside & (c < count)[None, :]
        d = tl.where(mask, attribute(f, g, KIND, ABSOLUTE) - pivot, 0.0)
        total += d
        if SQUARES:
            squares += sum_of_squares(d, 1)
    return tl.sum(total, axis=1), squares

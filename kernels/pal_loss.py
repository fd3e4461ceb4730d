"""The Triton versions of `pal_loss` and `pal_loss_backward`: outputs, workspaces and launches.

One launch forward, one backward. No host synchronisation and no float atomics: results are bitwise reproducible.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pal_fast.constants import ATTRIBUTION, COMBINE, GROUPING, REDUCTION, SCORE
from pal_fast.reference import computing_dtype

from .landmark_heatmap import frame
from .launch import (
    OPTIONS,
    accumulator,
    ceil_div,
    fewest_splits,
    in_format_of,
    on_device,
    power_of_two,
    tile_sides,
    vector_width,
    wanted_programs,
    zeroed_tickets,
)
from .pal_loss_backward import pal_loss_backward_kernel
from .pal_loss_each import each_forward_kernel
from .pal_loss_forward import pal_loss_forward_kernel
from .sweep import TILE, Sweep, is_channels_last, plan

#: A map of up to this many cells is scored in registers, in one block; a larger one block by block.
BLOCK_CELLS = 1024

#: Elements of a sample's partial maps that its last program loads at once: large, because everything waits for it and
#: each round trip to memory costs a latency.
PARTIALS_AT_ONCE = 8192

#: How many partial maps are loaded at once if a sample has few, and if it has more. Only two values: the number of
#: partial maps depends on the batch size, and each value compiles another kernel.
FEW_PARTIALS, MANY_PARTIALS = 8, 64

#: Elements of a tile where one of TILE would take more than 128 registers a thread, so that fewer programs would be
#: resident than are planned: "all" has moments, float32 the widest loads and stores. Of "each", which has per-channel
#: values, some forwards take up to 220 even so.
SMALL_TILE = TILE // 2


def pal_loss(
    activation: Tensor | None,
    gradient: Tensor | None,
    heatmap: Tensor | None,
    landmarks: Tensor | None,
    visible: Tensor | None,
    weights: Tensor | None,
    sample_weight: Tensor | None,
    image_height: float,
    image_width: float,
    sigma: float,
    combine: int,
    normalize: int,
    attribution: int,
    absolute: bool,
    grouping: int,
    channel_count: int,
    score: int,
    scale: int,
    reduction: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss and what its backward needs; arguments and results are those of the operator's schema.

    Args: activation, gradient [B, C, H, W]; heatmap [B, H, W] or landmarks [B, K, 2], visible [B, K],
        weights [B, K]; sample_weight [B]; image size and sigma in image pixels.
    Returns: loss [] or [B]; plane [B, H, W]; coefficients [B, G, 3]; factor [B].
    """
    layer = activation if activation is not None else gradient
    assert layer is not None
    gradient = in_format_of(layer, gradient)
    batch, _, height, width = layer.shape
    dtype = computing_dtype(layer.dtype)
    each = GROUPING[grouping] == "each"
    whole = REDUCTION[reduction] != "none"
    groups = {"map": 0, "all": 1, "each": channel_count}[GROUPING[grouping]]
    plane = layer.new_empty((batch, height, width), dtype=dtype)
    coefficients = layer.new_empty((batch, groups, 3), dtype=dtype)
    factor = layer.new_empty((batch,), dtype=dtype)
    if batch == 0:
        return layer.new_zeros(() if whole else (0,), dtype=dtype), plane, coefficients, factor
    loss = layer.new_empty(() if whole else (batch,), dtype=dtype)

    # With 16 x 16 tiles the programs of a sample share the work; under "each" every program computes the whole map.
    block_h, block_w = tile_sides(height, width, *((32, 64) if each else (16, 16)))
    prior: dict[str, Any] = {
        "heatmap_ptr": heatmap,
        "landmarks_ptr": landmarks,
        "visible_ptr": visible,
        "weights_ptr": weights,
        "sample_weight_ptr": sample_weight,
        "width": width,
        "landmarks": 0 if landmarks is None else landmarks.shape[1],
        **frame(image_height, image_width, (height, width), sigma),
        "PEARSON": SCORE[score] == "pearson",
        "SCALE": scale,
        "MAXIMUM": COMBINE[combine] == "max",
        "NORMALIZE": normalize,
        "BLOCK_H": block_h,
        "BLOCK_W": block_w,
        "T": accumulator(layer.dtype),
    }
    outputs = {"loss_ptr": loss, "coefficients_ptr": coefficients, "factor_ptr": factor, "plane_ptr": plane}
    shared: dict[str, Any] = {
        "activation_ptr": activation,
        "gradient_ptr": gradient,
        "scores_ptr": layer.new_empty((batch, 2), dtype=torch.float64) if whole else None,
        "KIND": attribution,
        "ABSOLUTE": absolute,
        "REDUCTION": reduction,
    }
    with on_device(layer):
        shared["tickets_ptr"] = zeroed_tickets(batch + 1, layer)
        if each:
            _launch_each(layer, channel_count, prior, outputs, shared)
        else:
            _launch_map(layer, channel_count, GROUPING[grouping] == "all", prior, outputs, shared)
    return loss, plane, coefficients, factor


def _launch_map(
    layer: Tensor,
    count: int,
    together: bool,
    prior: dict[str, Any],
    outputs: dict[str, Tensor],
    shared: dict[str, Any],
) -> None:
    """One launch: sweep, score, reduce."""
    sweep = plan(layer, count=count, swept=count, tile=SMALL_TILE if together else TILE)
    plane = outputs["plane_ptr"]
    block_n = min(power_of_two(sweep.cells), BLOCK_CELLS)
    pal_loss_forward_kernel[(sweep.programs,)](
        **prior,
        **outputs,
        **shared,
        **sweep.arguments(),
        partials_ptr=plane.new_empty(sweep.batch * sweep.partials * sweep.cells),
        squares_ptr=plane.new_empty(sweep.programs, dtype=torch.float64) if together else None,
        batch=sweep.batch,
        partials=sweep.partials,
        ALL=together,
        TILED=sweep.cells > block_n,
        BLOCK_N=block_n,
        BLOCK_S=min(FEW_PARTIALS if sweep.partials <= FEW_PARTIALS else MANY_PARTIALS, PARTIALS_AT_ONCE // block_n),
        **OPTIONS,
    )


def _launch_each(
    layer: Tensor, count: int, prior: dict[str, Any], outputs: dict[str, Tensor], shared: dict[str, Any]
) -> None:
    """One launch: the heatmap, in every program, and the score of every channel."""
    batch, channels, height, width = layer.shape
    cells = height * width
    channels_last = is_channels_last(layer)
    vector_c, vector_cells = vector_width(layer.dtype, channels), vector_width(layer.dtype, cells)
    # Narrow loads need more registers for addresses.
    tile = SMALL_TILE if channels_last or vector_cells > 1 else SMALL_TILE // 2
    if channels_last:
        block_c = min(power_of_two(count), 64)
        block_n = min(power_of_two(cells), tile // block_c)
    else:
        block_n = min(power_of_two(cells), BLOCK_CELLS)
        block_c = min(power_of_two(count), tile // block_n)
    steps = ceil_div(count, block_c)
    splits = fewest_splits(steps, min(steps, max(1, wanted_programs(layer) // batch)))
    each_forward_kernel[(batch * splits,)](
        **prior,
        **outputs,
        **shared,
        partials_ptr=layer.new_empty((batch, splits), dtype=torch.float64),
        batch=batch,
        channels_v=channels // vector_c,
        count=count,
        cells_v=cells // vector_cells,
        steps=steps,
        splits=splits,
        CHANNELS_LAST=channels_last,
        VECTOR_C=vector_c,
        VECTOR_CELLS=vector_cells,
        BLOCK_C=block_c,
        BLOCK_N=block_n,
        **OPTIONS,
    )


def pal_loss_backward(
    grad_loss: Tensor,
    activation: Tensor | None,
    gradient: Tensor | None,
    plane: Tensor,
    coefficients: Tensor,
    factor: Tensor,
    attribution: int,
    absolute: bool,
    grouping: int,
    channel_count: int,
    need_activation: bool,
    need_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of activation and gradient [B, C, H, W] in their dtype and format; one not needed has no elements.

    Args: grad_loss [] or [B] of any stride; plane [B, H, W], coefficients [B, G, 3] and factor [B] as
        `pal_loss` returned them.
    """
    layer = activation if activation is not None else gradient
    assert layer is not None
    gradient = in_format_of(layer, gradient)
    need_activation = need_activation and ATTRIBUTION[attribution] != "grad"
    need_gradient = need_gradient and ATTRIBUTION[attribution] != "activation"
    d_activation = torch.empty_like(layer) if need_activation else None
    d_gradient = torch.empty_like(layer) if need_gradient else None
    if layer.numel() and (need_activation or need_gradient):
        tile = SMALL_TILE if GROUPING[grouping] == "each" or layer.dtype == torch.float32 else TILE
        sweep: Sweep = plan(layer, count=channel_count, swept=layer.shape[1], tile=tile)
        with on_device(layer):
            pal_loss_backward_kernel[(sweep.programs,)](
                grad_loss_ptr=grad_loss,
                activation_ptr=activation,
                gradient_ptr=gradient,
                plane_ptr=plane,
                coefficients_ptr=coefficients,
                factor_ptr=factor,
                d_activation_ptr=d_activation,
                d_gradient_ptr=d_gradient,
                grad_loss_stride=grad_loss.stride(0) if grad_loss.dim() else 0,
                **sweep.arguments(),
                KIND=attribution,
                ABSOLUTE=absolute,
                GROUPING=grouping,
                T=accumulator(layer.dtype),
                **OPTIONS,
            )
    return (
        d_activation if d_activation is not None else layer.new_empty(0),
        d_gradient if d_gradient is not None else layer.new_empty(0),
    )

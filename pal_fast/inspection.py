"""Attribution maps of a model in its current state, train or eval mode: for pictures, metrics and reports."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pal_fast import _checks
from pal_fast.attribution import distributed
from pal_fast.attribution.targets import Target, attributed_gradients, check_logits, check_target
from pal_fast.capture import buffers
from pal_fast.capture.capture import Capture
from pal_fast.capture.layer_names import find_layers
from pal_fast.capture.layouts import LAYOUTS, layout_of
from pal_fast.capture.model_run import Output, check_output, eagerly, logits_of, outside_inference_mode
from pal_fast.functional import attribution_map
from pal_fast.options import AttributionOptions


def attribute(
    model: nn.Module,
    layer: nn.Module | str,
    images: Any,
    *,
    attribution: str = "grad_input",
    absolute: bool = True,
    channels: str = "mean",
    channel_count: int | float | None = None,
    target: Target = "sum",
    labels: Tensor | None = None,
    layout: str = "auto",
    output: Output | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs the model once; returns the layer's attribution map, as `PALLoss` with these options sees it, and logits.

    The model's mode, parameter gradients, buffers and hooks are left unchanged; the results are not differentiable. May
    be called under `torch.no_grad` and `torch.inference_mode`, and on a compiled model, which runs eagerly. Of
    DistributedDataParallel only the wrapped network runs, so the images must be on its device. One process may call
    this without the others, unless the network itself communicates (`fully_shard`; SyncBatchNorm in train mode).

    Args:
        model, layer: a module, and one of its submodules, as the module or by name.
        images: (B, 3, IH, IW), a tuple of the model's positional inputs, or a dict of its keyword arguments.
        attribution, absolute, channels, channel_count: see `pal_loss`.
        target, labels, layout: see `PALLoss`.
        output: extracts the logits from what the model returns; None takes the returned tensor, its `logits`, or the
            only tensor in it.

    Returns: maps (B, H, W) float32 (float64 for a float64 model); logits, detached.

    Raises: ValueError, TypeError naming the argument, or if the logits do not depend on the layer.
    """
    AttributionOptions(attribution, absolute, channels, channel_count)
    check_target(target)
    _checks.choice("layout", layout, LAYOUTS)
    check_output(output)
    layers = find_layers(model, layer)
    if len(layers) != 1:
        raise ValueError(f"layer must name one layer, got {len(layers)}")
    images, labels = outside_inference_mode(model, images, labels)
    capture = Capture(model, layers)
    capture.attach()
    in_train_mode = [module for module in buffers.stateful(model) if module.training]
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            capture.forced(),
            eagerly(),
            distributed.reducers_aside(model),
            buffers.kept(in_train_mode),
        ):
            logits = logits_of(model, images, output)
            check_logits(logits)
            (taken,) = capture.take()
            activation = taken.output
            assert activation is not None
            view = layout_of(layout, taken.name, activation, capture.image_size, taken.signs).view
            _checks.layer_tensor(f"the output of layer {taken.name!r}", view(activation))
            (gradient,) = attributed_gradients(logits, [activation], target, labels, create_graph=False)
    finally:
        capture.remove()
    if gradient is None:
        raise _checks.NotReadyError(f"the logits do not depend on the output of layer {taken.name!r}")
    maps = attribution_map(
        view(activation.detach()),
        view(gradient),
        attribution=attribution,
        absolute=absolute,
        channels=channels,
        channel_count=channel_count,
    )
    return maps, logits.detach()

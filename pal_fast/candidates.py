"""The layers of a model whose output is a map, as `pal-fast doctor` lists them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pal_fast.channel_axis import ChannelSigns, signs_of
from pal_fast.layouts import layout_of
from pal_fast.model_run import in_mode

#: A map with fewer cells along a side holds no attribution worth aligning.
LEAST_CELLS = 3


@dataclass(frozen=True)
class Candidate:
    """A layer that runs once and returns a map."""

    name: str
    shape: tuple[int, int, int, int]  # (B, C, H, W)
    layout: str
    share_above: float  # of the forward's time: a step with the loss costs about 1 + this, in plain steps

    def __str__(self) -> str:
        return f"{self.name:<32} {', '.join(map(str, self.shape)):<20} {self.layout:<20} {self.share_above:4.0%}"


def candidates(model: nn.Module, images: Tensor) -> list[Candidate]:
    """The modules that return a map of at least 3 x 3 cells, in running order, down to a network's blocks.

    That is modules one or two names deep ("features.22"), and blocks three deep ("encoder.layers.encoder_layer_5").
    Found in two forwards without gradients (the first warms up), in eval mode.

    Args: images (B, 3, IH, IW).
    """
    found: dict[str, tuple[Tensor, float]] = {}
    runs: dict[str, int] = {}

    def on_end(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, (tuple, list)) and output else output
            runs[name] = runs.get(name, 0) + 1
            if isinstance(tensor, Tensor) and tensor.ndim in (3, 4) and tensor.is_floating_point():
                found[name] = (tensor, time.perf_counter())

        return hook

    handles = [
        module.register_forward_hook(on_end(name))
        for name, module in model.named_modules()
        if name and (name.count(".") < 2 or (name.count(".") == 2 and any(module.children())))
    ]
    try:
        with torch.no_grad(), in_mode(model, training=False):
            model(images)
            found.clear()
            runs.clear()
            start = time.perf_counter()
            model(images)
            end = time.perf_counter()
    finally:
        for handle in handles:
            handle.remove()
    size = (images.shape[-2], images.shape[-1])
    named = dict(model.named_modules())
    made = [
        _candidate(name, tensor, size, signs_of(model, named[name]), (end - at) / (end - start))
        for name, (tensor, at) in found.items()
    ]
    return [candidate for candidate in made if candidate is not None and runs[candidate.name] == 1]


def _candidate(
    name: str, tensor: Tensor, image_size: tuple[int, int], signs: ChannelSigns, share: float
) -> Candidate | None:
    try:
        layout = layout_of("auto", name, tensor, image_size, signs)
    except ValueError:
        return None
    view = layout.view(tensor)
    if min(view.shape[2:]) < LEAST_CELLS:
        return None
    batch, channels, height, width = view.shape
    return Candidate(name, (batch, channels, height, width), str(layout), share)

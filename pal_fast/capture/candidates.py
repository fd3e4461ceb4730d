"""The layers of a model whose output is a map, as `pal-fast doctor` lists them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pal_fast.capture.captured import tensor_of
from pal_fast.capture.channel_axis import ChannelSigns, signs_of
from pal_fast.capture.layouts import Layout, layout_of
from pal_fast.capture.model_run import in_mode, logits_of

#: A map with fewer cells along a side holds no attribution worth aligning.
LEAST_CELLS = 3


@dataclass(frozen=True)
class Candidate:
    """A layer that runs once and returns a map."""

    name: str
    shape: tuple[int, int, int, int]  # (B, C, H, W)
    layout: str
    share_above: float  # of the forward's time, spent above the layer: a step with the loss costs about 1 + this
    #: Whether the gradient of the logits is nonzero anywhere in the map; true if that is unknown.
    reached: bool = True

    def __str__(self) -> str:
        return f"{self.name:<32} {', '.join(map(str, self.shape)):<20} {self.layout:<20} {self.share_above:4.0%}"


def candidates(model: nn.Module, images: Tensor) -> list[Candidate]:
    """The modules that return a map of at least 3 x 3 cells, in execution order, down to the level of blocks.

    These are modules at a depth of one or two names ("features.22") and blocks at three
    ("encoder.layers.encoder_layer_5"). Runs two forwards without gradients (the first is a warm-up) and one with the
    gradient of the logits, in eval mode.

    Args: images (B, 3, IH, IW).
    """
    found: dict[str, tuple[Tensor, float]] = {}
    runs: dict[str, int] = {}
    logits: Tensor | None = None

    def on_end(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensor = tensor_of(output)
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
        with in_mode(model, training=False):
            with torch.no_grad():
                model(images)
                found.clear()
                runs.clear()
                start = time.perf_counter()
                model(images)
                end = time.perf_counter()
            named = dict(model.named_modules())
            made: dict[str, tuple[Candidate, Layout]] = {}
            for name, (tensor, at) in found.items():
                layout = _layout(name, tensor, images, signs_of(model, named[name]))
                if layout is not None and runs[name] == 1:
                    batch, channels, height, width = layout.view(tensor).shape
                    shape, share = (batch, channels, height, width), (end - at) / (end - start)
                    made[name] = Candidate(name, shape, str(layout), share), layout
            found.clear()
            with torch.enable_grad(), contextlib.suppress(TypeError):  # the model returns no single tensor of logits
                # Not a leaf, so that the first layer may work in place. Starts a graph even below frozen layers.
                logits = logits_of(model, images.detach().requires_grad_().clone(), None)
    finally:
        for handle in handles:
            handle.remove()
    if logits is None:
        return [candidate for candidate, _ in made.values()]
    unreached = _unreached(logits, {name: (found[name][0], layout) for name, (_, layout) in made.items()})
    return [replace(candidate, reached=name not in unreached) for name, (candidate, _) in made.items()]


def _layout(name: str, tensor: Tensor, images: Tensor, signs: ChannelSigns) -> Layout | None:
    """The layout of a map with enough cells; None for anything else."""
    try:
        layout = layout_of("auto", name, tensor, (images.shape[-2], images.shape[-1]), signs)
    except ValueError:
        return None
    return layout if min(layout.view(tensor).shape[2:]) >= LEAST_CELLS else None


def _unreached(logits: Tensor, outputs: dict[str, tuple[Tensor, Layout]]) -> set[str]:
    """The layers at which the gradient of the logits' sum is exactly zero everywhere."""
    names = [name for name, (tensor, _) in outputs.items() if tensor.requires_grad]
    if not names or not logits.requires_grad:
        return set()
    gradients = torch.autograd.grad(logits.sum(), [outputs[name][0] for name in names], allow_unused=True)
    return {
        name
        for name, gradient in zip(names, gradients, strict=True)
        if gradient is None or not bool((outputs[name][1].view(gradient) != 0).any())
    }

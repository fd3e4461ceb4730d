"""Keeps running statistics (BatchNorm's, InstanceNorm's) out of passes that repeat a forward.

The first-order engine runs the head again, `pal.check` the whole model, and activation checkpointing its segments.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


def tracking(model: nn.Module) -> list[nn.Module]:
    """The modules of `model` that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _NormBase) and m.track_running_stats]


@contextlib.contextmanager
def kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, forwards of `modules` update copies of their running statistics, dropped at the end."""
    real = [(module, swap_in_copies(module)) for module in modules]
    try:
        yield
    finally:
        for module, buffers in real:
            module._buffers.update(buffers)


def swap_in_copies(module: nn.Module) -> dict[str, Tensor | None]:
    """Gives `module` copies of its buffers to write to; returns the real ones, for `module._buffers.update`."""
    buffers = dict(module._buffers)
    module._buffers.update({name: None if b is None else b.clone() for name, b in buffers.items()})
    return buffers

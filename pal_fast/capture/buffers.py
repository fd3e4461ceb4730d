"""Protects the state of modules (running statistics, spectral_norm's vectors) from passes that repeat a forward.

Finite differences re-run the head, `pal.check` and `attribute` the whole model, and activation checkpointing
its segments.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

Buffers = dict[str, Tensor | None]


def tracking(model: nn.Module) -> list[nn.Module]:
    """The modules of `model` that keep running statistics."""
    return [m for m in model.modules() if _tracks(m)]


def _tracks(module: nn.Module) -> bool:
    return isinstance(module, _NormBase) and module.track_running_stats


def stateful(model: nn.Module) -> list[nn.Module]:
    """The modules of `model` with buffers, which a forward may modify."""
    return [m for m in model.modules() if len(m._buffers)]


def used_in_training(model: nn.Module) -> dict[nn.Module, Buffers]:
    """Copies of the buffers on which outputs in train mode may depend, which excludes running statistics."""
    return {m: _copied(held_by(m)) for m in stateful(model) if m.training and not _tracks(m)}


@contextlib.contextmanager
def kept(modules: Iterable[nn.Module], start: Mapping[nn.Module, Buffers] | None = None) -> Iterator[None]:
    """Inside, forwards of `modules` write to copies of their buffers, which are discarded on exit.

    Args:
        start: initial values of the copies, for some of the modules; the current values for the others.
    """
    real: dict[nn.Module, Buffers] = {}
    try:
        for module in modules:
            real[module] = swap_in_copies(module, (start or {}).get(module))
        yield
    finally:
        for module, buffers in real.items():
            put_back(module, buffers)


def swap_in_copies(module: nn.Module, values: Buffers | None = None) -> Buffers:
    """Gives `module` copies of its buffers, or of `values`, to write to; returns the real ones, for `put_back`."""
    buffers = held_by(module)
    put_back(module, _copied(buffers if values is None else values))
    return buffers


def put_back(module: nn.Module, buffers: Buffers) -> None:
    for name, buffer in buffers.items():  # the buffers of a scripted module have no update()
        module._buffers[name] = buffer


def held_by(module: nn.Module) -> Buffers:
    return dict(module._buffers.items())


def differing(model: nn.Module, one: Mapping[nn.Module, Buffers], other: Mapping[nn.Module, Buffers]) -> list[str]:
    """The names of the buffers whose values differ; both mappings hold the same modules."""
    return [
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        if module in one
        for name, buffer in one[module].items()
        if not _equal(buffer, other[module].get(name))
    ]


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and torch.equal(one, other)


def _copied(buffers: Buffers) -> Buffers:
    return {name: None if b is None else b.clone() for name, b in buffers.items()}

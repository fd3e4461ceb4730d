"""Layers by name: resolves a `layer` argument in a model, whatever wraps the model or its parts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pal_fast import _checks
from pal_fast.messages import describe, near_layer

#: Names that wrappers (DDP, torch.compile, FSDP1, checkpoint_wrapper, Fabric) put into a module's dotted name.
_WRAPPER_NAMES = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
)

#: The name of the model itself, if it is the layer.
WHOLE = "(model)"


def plain_name(name: str) -> str:
    """A module's dotted name without the parts that wrappers add."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_NAMES)


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile(module)` returned it. Does not import the compiler."""
    frames = sys.modules.get("torch._dynamo.eval_frame")
    return frames is not None and isinstance(module, frames.OptimizedModule)


def within_compiled(model: nn.Module, *, differentiates: bool) -> nn.Module:
    """The network that can carry hooks: the one `torch.compile` wrapped, as hooks on the wrapper break compilation.

    Args:
        differentiates: whether the logits are to be differentiated with respect to a layer.

    Raises: TypeError for a compiled model if `differentiates`, naming both ways to compile.
    """
    if not is_compiled(model):
        return model
    if differentiates:
        raise TypeError(
            "model must not be the result of torch.compile(model), which cannot be differentiated twice: construct the "
            "PALLoss with the model itself, and compile only the layers below the attributed one "
            "(pal_fast.compiled.compile_body) or the whole step (pal_fast.compiled.compile_step)"
        )
    return model.get_submodule("_orig_mod")


def find_layers(model: nn.Module, layers: Any) -> dict[str, nn.Module]:
    """The modules that `layers` names: a dotted name, a module of the model, or a sequence of these.

    Raises: TypeError for anything else, and for a ScriptModule; ValueError, with the nearest names, for a name or
        module that is not in the model.
    """
    _checks.module("model", model)
    wanted = list(layers) if isinstance(layers, Sequence) and not isinstance(layers, str) else [layers]
    if not wanted:
        raise ValueError("layer must name at least one layer, got an empty list")
    named = dict(model.named_modules())
    plain = {plain_name(name): module for name, module in named.items()}
    found: dict[str, nn.Module] = {}
    for layer in wanted:
        if isinstance(layer, nn.Module):
            name = next((n for n, module in named.items() if module is layer), None)
            if name is None:
                raise ValueError(
                    f"layer {type(layer).__name__} is not a module of {type(model).__name__}; name one of its own"
                )
            found[plain_name(name) or WHOLE] = layer
        elif isinstance(layer, str):
            module = model if layer == WHOLE else named.get(layer) or plain.get(plain_name(layer))
            if module is None or layer == "":
                raise ValueError(f"layer {layer!r} is not a module of {type(model).__name__}{near_layer(layer, plain)}")
            found[layer] = module
        else:
            raise TypeError(f"layer must be a module, its dotted name or a list of these, got {describe(layer)}")
    for name, module in found.items():
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"layer {name!r} is scripted, and a ScriptModule takes no hooks: name a layer that is not, or take the "
                "model as it was before torch.jit.script; what lies above and below the layer may be scripted"
            )
    return found

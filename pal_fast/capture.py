"""Captures a layer's output, and the size of the model's input, during the model's own forward.

Hooks live in the model's modules but leave no trace in copies of it: copied or pickled, a hook becomes a
no-op of the standard library, so that `deepcopy`, `pickle` and `state_dict` of the model are not disturbed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pal_fast import _checks

#: Names that wrappers (DDP, torch.compile, FSDP1, checkpoint_wrapper) put into a module's dotted name.
_WRAPPER_NAMES = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def plain_name(name: str) -> str:
    """A module's dotted name without the parts that wrappers add."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_NAMES)


def find_layers(model: nn.Module, layers: Any) -> dict[str, nn.Module]:
    """The modules that `layers` names: a dotted name, a module of the model, or a sequence of these.

    Raises: TypeError for anything else; ValueError for a name or module that the model does not hold, with the
        nearest names.
    """
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
                raise ValueError(f"layer {type(layer).__name__} is not a module of {type(model).__name__}")
            found[plain_name(name) or "(model)"] = layer
        elif isinstance(layer, str):
            module = named.get(layer) or plain.get(layer)
            if module is None or layer == "":
                raise ValueError(
                    f"layer {layer!r} is not a module of {type(model).__name__}{_checks.near(layer, plain)}"
                )
            found[layer] = module
        else:
            raise TypeError(
                f"layer must be a module, its dotted name or a list of these, got {_checks.describe(layer)}"
            )
    return found


class Hook:
    """A callable for `register_forward_hook` that a copy or a pickle turns into a no-op."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)

    def __reduce__(self) -> Any:
        # nullcontext.__exit__ takes what a hook is given and returns None; unpickling it needs no pal_fast.
        return getattr, (contextlib.nullcontext(), "__exit__")


@dataclass
class Captured:
    """One layer's output in the latest forward."""

    name: str
    output: Tensor | None = None
    version: int = 0
    runs: int = 0
    problem: str = ""

    def clear(self) -> None:
        self.output, self.runs, self.problem = None, 0, ""


@dataclass
class Capture:
    """The hooks of one `PALLoss` on one model, and what they caught.

    An output is caught while the model trains with gradients enabled (or inside `forced()`), and is held
    until `take` or the next forward of the model.
    """

    model: nn.Module
    layers: dict[str, nn.Module]
    image_size: tuple[int, int] | None = None
    captured: list[Captured] = field(default_factory=list)
    handles: list[Any] = field(default_factory=list)
    force: bool = False

    def attach(self) -> None:
        """Puts the hooks on: one per layer, two on the model."""
        self.captured = [Captured(name) for name in self.layers]
        for record, layer in zip(self.captured, self.layers.values(), strict=True):
            self.handles.append(layer.register_forward_hook(Hook(self._on_layer(record))))
        before = Hook(self._before_model)
        self.handles.append(self.model.register_forward_pre_hook(before, with_kwargs=True))

    def remove(self) -> None:
        """Takes the hooks off and drops what they hold. Idempotent."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.clear()

    def clear(self) -> None:
        for record in self.captured:
            record.clear()

    @property
    def wanted(self) -> bool:
        return (self.model.training or self.force) and torch.is_grad_enabled()

    @contextlib.contextmanager
    def forced(self) -> Any:
        """Captures in eval mode, too."""
        self.force = True
        try:
            yield
        finally:
            self.force = False

    def take(self) -> list[Tensor]:
        """The layers' outputs of the latest forward, released here.

        Raises: RuntimeError saying why there is none.
        """
        outputs = []
        for record in self.captured:
            if record.output is None or record.problem or record.runs != 1:
                message = self._why_none(record)
                self.clear()
                raise RuntimeError(message)
            outputs.append(record.output)
        self.clear()
        return outputs

    def _why_none(self, record: Captured) -> str:
        if record.problem:
            return record.problem
        if record.runs > 1:
            return (
                f"layer {record.name!r} ran {record.runs} times in one forward, so its output is ambiguous; "
                "name a layer that runs once"
            )
        if not self.handles:
            return "the hooks of this PALLoss were removed; make a new one"
        if not torch.is_grad_enabled():
            return "PALLoss needs gradients, but grad mode is off (torch.no_grad or inference_mode)"
        if not self.model.training:
            return (
                "the model is in eval mode, in which PALLoss captures nothing; call model.train(), or use "
                "pal_fast.attribute for attributions of a model in eval mode"
            )
        return (
            f"layer {record.name!r} has not run with gradients since the last loss: call model(images) in train "
            "mode once before each call of the loss, and name a layer which that forward runs"
        )

    def _before_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.clear()
        image = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.ndim == 4), None)
        if image is not None:
            self.image_size = (image.shape[-2], image.shape[-1])

    def _on_layer(self, record: Captured) -> Callable[..., Any]:
        def on_layer(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            # A checkpointed layer runs again inside the backward pass: that output is not the forward's.
            if not self.wanted or torch._C._current_graph_task_id() != -1:
                return None
            tensor = _tensor_of(output)
            record.runs += 1
            if tensor is None:
                record.problem = (
                    f"layer {record.name!r} returns {_checks.describe(output)}; a layer whose output is one "
                    "tensor is wanted"
                )
                return None
            if tensor.requires_grad:
                record.output, record.version = tensor, tensor._version
                return None
            # Everything below is frozen: the attribution still needs a graph that starts here.
            record.output = tensor.detach().requires_grad_()
            record.version = record.output._version
            return _with_tensor(output, record.output)

        return on_layer


def _tensor_of(output: Any) -> Tensor | None:
    """The tensor that a layer returns, alone or first in a tuple."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    return None


def _with_tensor(output: Any, tensor: Tensor) -> Any:
    """`output` with its tensor replaced."""
    if isinstance(output, Tensor):
        return tensor
    return type(output)([tensor, *output[1:]])

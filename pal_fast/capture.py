"""Captures a layer's output, and the size of the model's input, during the model's own forward.

Hooks live in the model's modules but leave no trace in copies of it: copied or pickled, a hook becomes a
no-op of the standard library, so that `deepcopy`, `pickle` and `state_dict` of the model are not disturbed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from pal_fast import _checks
from pal_fast.attention import MathAttention
from pal_fast.checkpointing import CheckpointedSegments

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
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {_checks.describe(model)}")
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
                    f"layer {layer!r} is not a module of {type(model).__name__}{_checks.near_layer(layer, plain)}"
                )
            found[layer] = module
        else:
            raise TypeError(
                f"layer must be a module, its dotted name or a list of these, got {_checks.describe(layer)}"
            )
    return found


class Hook(functools.partial[Any]):
    """A callable for `register_forward_hook` that a copy or a pickle turns into a no-op."""

    def __reduce__(self) -> Any:
        # nullcontext.__exit__ takes what a hook is given and returns None; unpickling it needs no pal_fast.
        return getattr, (contextlib.nullcontext(), "__exit__")


@dataclass(frozen=True)
class Conditions:
    """What a pass that repeats the head must find as it was in the forward."""

    device: torch.device
    cpu_state: Tensor
    gpu_state: Tensor | None
    autocast: bool
    autocast_dtype: torch.dtype

    @classmethod
    def now(cls, device: torch.device) -> Conditions:
        return cls(
            device,
            torch.get_rng_state(),
            torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            torch.is_autocast_enabled(device.type),
            torch.get_autocast_dtype(device.type),
        )


@dataclass
class Captured:
    """One layer's output in the latest forward."""

    name: str
    output: Tensor | None = None
    version: int = 0
    conditions: Conditions | None = None
    runs: int = 0
    problem: str = ""

    def clear(self) -> None:
        self.output, self.conditions, self.runs, self.problem = None, None, 0, ""

    def released(self) -> Captured:
        """What was captured, for one who uses it up; nothing is left here."""
        taken = Captured(self.name, self.output, self.version, self.conditions, self.runs)
        self.clear()
        return taken

    @property
    def changed_in_place(self) -> bool:
        """Whether a later layer overwrote the output, e.g. `ReLU(inplace=True)`."""
        return self.output is not None and self.output._version != self.version


@dataclass
class Capture:
    """The hooks of one `PALLoss` on one model, and what they caught.

    An output is caught while the model trains with gradients enabled (or inside `forced()`), and is held
    until `take` or the next forward of the model. What is caught is the layer's output tensor: if a later layer
    overwrites it in place, it holds what that layer wrote.
    """

    model: nn.Module
    layers: dict[str, nn.Module]
    #: Whether the layers above run with attention that can be differentiated twice.
    math_attention: bool = False
    #: Whether the conditions at the layer are kept, for passes that repeat the head.
    keep_conditions: bool = False
    image_size: tuple[int, int] | None = None
    captured: list[Captured] = field(default_factory=list)
    handles: list[Any] = field(default_factory=list)
    force: bool = False
    #: Whether a forward of the model with gradients is under way.
    running: bool = False
    attention: MathAttention = field(default_factory=MathAttention)
    segments: CheckpointedSegments | None = None

    def attach(self) -> None:
        """Puts the hooks on: one per layer, two on the model."""
        self.captured = [Captured(name) for name in self.layers]
        for record, layer in zip(self.captured, self.layers.values(), strict=True):
            self.handles.append(layer.register_forward_hook(Hook(self._on_layer(record))))
        before, after = Hook(self._before_model), Hook(self._after_model)
        self.handles.append(self.model.register_forward_pre_hook(before, with_kwargs=True))
        # Also after an exception, so that the attention kernels are never left switched.
        self.handles.append(self.model.register_forward_hook(after, always_call=True))
        self.segments = CheckpointedSegments(self.model, Hook, lambda: self.running, lambda: self.attention.entered)

    def remove(self) -> None:
        """Takes the hooks off and drops what they hold. Idempotent."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        if self.segments is not None:
            self.segments.remove()
        self.attention.leave()
        self.clear()

    def probe_checkpoints(self) -> None:
        """Looks for checkpointed segments anew in the next forward."""
        if self.segments is not None and self.handles:
            self.segments.probe()

    def clear(self) -> None:
        for record in self.captured:
            record.clear()

    @property
    def wanted(self) -> bool:
        return (self.model.training or self.force) and torch.is_grad_enabled()

    @contextlib.contextmanager
    def forced(self) -> Iterator[None]:
        """Captures in eval mode, too."""
        self.force = True
        try:
            yield
        finally:
            self.force = False

    def take(self) -> list[Captured]:
        """The layers' outputs of the latest forward, released here.

        Raises: NotReadyError saying why there is none.
        """
        for record in self.captured:
            if record.output is None or record.problem or record.runs != 1:
                message = self._why_none(record)
                self.clear()
                raise _checks.NotReadyError(message)
        return [record.released() for record in self.captured]

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
        # Inside a backward pass this is a checkpoint's recomputation, not the forward.
        if not is_compiling() and torch._C._current_graph_task_id() != -1:
            return
        self.clear()
        if self.running and not is_compiling():
            self.attention.leave()  # The forward before this one was interrupted.
        self.running = self.wanted
        if self.running and self.segments is not None and not is_compiling():
            self.segments.begin()
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.ndim == 4:
                self.image_size = (value.shape[2], value.shape[3])
                break

    def _after_model(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.running:
            self.running = False
            if not is_compiling():
                self.attention.leave()
                if self.segments is not None:
                    self.segments.end()

    def _on_layer(self, record: Captured) -> Callable[..., Any]:
        def on_layer(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            compiling = is_compiling()
            # A checkpointed layer runs again inside the backward pass: that output is not the forward's.
            if not compiling and torch._C._current_graph_task_id() != -1:
                return None
            if not self.wanted:
                if self.running:
                    record.problem = _without_gradients(record.name)
                return None
            tensor = _tensor_of(output)
            record.runs += 1
            if tensor is None:
                record.problem = (
                    f"layer {record.name!r} returns {_checks.describe(output)}; a layer whose output is one "
                    "tensor is wanted"
                )
                return None
            if not compiling and self.running:
                if self.math_attention:
                    self.attention.enter()
                if self.keep_conditions:
                    record.conditions = Conditions.now(tensor.device)
            if tensor.requires_grad:
                record.output, record.version = tensor, tensor._version
                return None
            # Everything below is frozen: the attribution still needs a graph that starts here.
            record.output = tensor.detach().requires_grad_()
            record.version = record.output._version
            return _with_tensor(output, record.output)

        return on_layer


def _without_gradients(name: str) -> str:
    return (
        f"layer {name!r} ran without gradients inside a forward that has them: if it lies in an activation "
        "checkpoint, use use_reentrant=False; otherwise take it out of torch.no_grad"
    )


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

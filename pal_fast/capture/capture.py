"""Captures a layer's output, and the size of the model's input, during the model's own forward.

The hooks are on the model's modules, but a deep copy of the model has none of them, and in a pickle they are no-ops of
the standard library (see `hook`): `deepcopy`, `pickle` and `state_dict` of the model work as before.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.compiler import is_compiling

from pal_fast import _checks
from pal_fast.autocast import autocast_dtype
from pal_fast.capture.captured import Captured, Conditions, InputImage, tensor_of, with_tensor
from pal_fast.capture.channel_axis import signs_of
from pal_fast.capture.checkpointing import CheckpointedSegments
from pal_fast.capture.hook import Hook
from pal_fast.capture.math_attention import MathAttention
from pal_fast.messages import describe

#: A unique number for each captured layer.
_MARKS = itertools.count()

#: The remedy for a layer that runs twice, as in siamese networks.
ONE_RUN = "name a layer that runs once, or run both inputs as one batch and split the logits"

#: Per thread, the capture that is currently `forced`.
_FORCED = threading.local()


def _forced() -> Capture | None:
    return None if is_compiling() else getattr(_FORCED, "capture", None)


@dataclass
class Capture:
    """The hooks of one `PALLoss` on one model, and what they captured.

    An output is captured while the model trains with gradients enabled (or inside `forced()`), and is held until `take`
    or the next such forward of the model. If only parts of the model are called, the latest run of the layer replaces
    the previous one. The captured tensor is the layer's output itself: if a later layer overwrites it in place, it
    holds what that layer wrote.
    """

    model: nn.Module
    layers: dict[str, nn.Module]
    #: Whether the layers above run with attention that can be differentiated twice.
    math_attention: bool = False
    #: Whether to record the conditions at the layer, for passes that repeat the head.
    keep_conditions: bool = False
    image: InputImage = field(default_factory=InputImage)
    captured: list[Captured] = field(default_factory=list)
    handles: list[Any] = field(default_factory=list)
    #: Whether a forward of the model with gradients is in progress.
    running: bool = False
    #: Whether this is `forced` on any thread: a GPU's backward pass, with its recomputations, runs on another thread.
    forcing: bool = False
    attention: MathAttention = field(default_factory=MathAttention)
    segments: CheckpointedSegments | None = None

    def attach(self) -> None:
        """Registers the hooks: one per layer, two on the model."""
        self.captured = [
            Captured(name, signs_of(self.model, layer), mark=f"pal_fast {next(_MARKS)}")
            for name, layer in self.layers.items()
        ]
        for record, layer in zip(self.captured, self.layers.values(), strict=True):
            self.handles.append(layer.register_forward_hook(Hook(self._on_layer(record))))
        before, after = Hook(self._before_model), Hook(self._after_model)
        self.handles.append(self.model.register_forward_pre_hook(before, with_kwargs=True))
        # Also after an exception, so that the attention kernels are never left switched.
        self.handles.append(self.model.register_forward_hook(after, always_call=True))
        self.segments = CheckpointedSegments(self.model, lambda: self.running, lambda: self.attention.entered)

    def remove(self) -> None:
        """Removes the hooks and drops what they hold. Idempotent."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        if self.segments is not None:
            self.segments.remove()
        self.attention.leave()
        self.clear()

    def probe_checkpoints(self) -> None:
        """Looks for checkpointed segments again in the next forward."""
        if self.segments is not None and self.handles:
            self.segments.probe()

    def clear(self) -> None:
        for record in self.captured:
            record.clear()

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(IH, IW) of the image in the latest forward."""
        return self.image.size

    @property
    def wanted(self) -> bool:
        return (self.model.training or _forced() is self) and torch.is_grad_enabled()

    @contextlib.contextmanager
    def forced(self) -> Iterator[None]:
        """Inside, captures in eval mode too, and as the only capture on this thread: what others hold is kept for their
        next loss."""
        outer, _FORCED.capture = _forced(), self
        before, self.forcing = self.forcing, True
        try:
            yield
        finally:
            _FORCED.capture = outer
            self.forcing = before

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """On exit, restores what was captured on entry."""
        before = [copy.copy(record) for record in self.captured]
        image = copy.copy(self.image)
        try:
            yield
        finally:
            for record, kept in zip(self.captured, before, strict=True):
                vars(record).update(vars(kept))
            self.image = image

    def _stands_aside(self) -> bool:
        """Whether the current forward is not the loss's own: a checkpoint's recomputation, inside a backward pass, or
        the forward of an inspection."""
        if is_compiling():
            return False
        forced = _forced()
        return torch._C._current_graph_task_id() != -1 or (forced is not None and forced is not self)

    def _beginning_again(self, output: Any) -> Any:
        """In a checkpoint's recomputation, a copy that starts the graph at the layer, as in the forward; None if the
        output stays as it is."""
        recomputed = torch._C._current_graph_task_id() != -1 and _forced() in (None, self)
        if not recomputed or not (self.model.training or self.forcing) or not torch.is_grad_enabled():
            return None
        tensor = tensor_of(output)
        if tensor is None or tensor.requires_grad or torch._C._functorch.peek_interpreter_stack() is not None:
            return None
        return with_tensor(output, _beginning(tensor))

    def take(self) -> list[Captured]:
        """The layers' outputs in the latest forward, which are released here.

        Raises: NotReadyError with the reason if there are none.
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
                f"layer {record.name!r} ran {record.runs} times in one forward, so its output is ambiguous: {ONE_RUN}"
            )
        if not self.handles:
            return "the hooks of this PALLoss were removed; construct a new one"
        if not torch.is_grad_enabled():
            return "PALLoss needs gradients, but grad mode is off (torch.no_grad or inference_mode)"
        if not self.model.training:
            return (
                "the model is in eval mode, in which PALLoss captures nothing; call model.train(), or use "
                "pal_fast.attribute to attribute a model in eval mode"
            )
        ran_without_it = self._last_child_without(record.name)
        if ran_without_it:
            return (
                f"layer {record.name!r} has not run, but its children have (timm's set_grad_checkpointing calls the "
                f"blocks of a stage without the stage): name its last block, {ran_without_it!r}"
            )
        return (
            f"layer {record.name!r} has not run with gradients since this PALLoss was made or last called (a call that "
            "raised counts): call model(images) in train mode once before each call, name a layer which that forward "
            "runs, and make a PALLoss for each loss, if a forward has several"
        )

    def _last_child_without(self, name: str) -> str:
        """The last child of layer `name` that ran in the latest forward, if the layer itself did not; "" otherwise."""
        layer = self.layers[name]
        if self.segments is None:
            return ""
        ran = self.segments.ran
        if ran is None:
            self.segments.probe()  # The next forward will tell.
            return ""
        children = [] if layer in ran else [child for child, module in layer.named_children() if module in ran]
        return f"{name}.{children[-1]}" if children else ""

    def _before_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self._stands_aside():
            return
        if self.running and not is_compiling():
            self.attention.leave()  # The previous forward was interrupted.
        self.running = self.wanted
        if not self.running:
            return  # What an earlier forward captured is kept for the next loss.
        for record in self.captured:
            if is_compiling():
                record.clear()
            else:
                record.give_way()
        if self.segments is not None and not is_compiling():
            self.segments.begin()
        self.image.read((*args, *kwargs.values()))

    def _after_model(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.running:
            self.running = False
            if not is_compiling():
                self.attention.leave()
                if self.segments is not None:
                    self.segments.end()

    def _on_layer(self, record: Captured) -> Callable[..., Any]:
        def on_layer(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if self._stands_aside():
                return self._beginning_again(output)
            if not self.wanted:
                if self.running:
                    record.problem = _without_gradients(record.name)
                return None
            tensor = tensor_of(output)
            if not is_compiling():
                record.supersede()
                # Without a forward of the model, runs cannot be counted per forward.
                if record.runs and not self.running:
                    record.runs, record.superseded = 0, True
            record.runs += 1
            if tensor is None:
                record.problem = (
                    f"layer {record.name!r} returns {describe(output)}; name a layer whose output is one tensor"
                )
                return None
            record.float16 = autocast_dtype(tensor) == torch.float16
            if not is_compiling():
                if self.running and self.math_attention:
                    self.attention.enter()
                if self.keep_conditions:
                    record.conditions = Conditions.now(tensor, self.model)
            if tensor.requires_grad:
                record.output, record.version = tensor, tensor._version
                if not is_compiling():
                    record.node = get_gradient_edge(tensor).node
                return None
            if not is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None:
                record.problem = _transformed(record.name)
                return None
            # Everything below is frozen, but the attribution needs a graph that starts here.
            record.output = _beginning(tensor)
            record.version = record.output._version
            if not is_compiling():
                record.node = record.output.grad_fn
            return with_tensor(output, record.output)

        return on_layer


def _beginning(tensor: Tensor) -> Tensor:
    """A copy that starts a graph. It is neither a leaf nor a view of one, so that a later layer may overwrite it in
    place."""
    return tensor.detach().requires_grad_().clone()


def _transformed(name: str) -> str:
    return (
        f"layer {name!r} ran inside a transform of torch.func (vmap, jvp, functionalize), where no graph can start at "
        "it: call the model outside the transform, or take torch.func.grad of parameters below the layer inside it"
    )


def _without_gradients(name: str) -> str:
    return (
        f"layer {name!r} ran without gradients inside a forward with gradients: if it is in an activation "
        "checkpoint, use use_reentrant=False; otherwise move it out of torch.no_grad"
    )

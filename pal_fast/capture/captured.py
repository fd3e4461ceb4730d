"""What is captured at a layer during one forward, and the size of the input image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pal_fast.autocast import autocast_dtype
from pal_fast.capture.buffers import Buffers, used_in_training
from pal_fast.capture.channel_axis import ChannelSigns


@dataclass(frozen=True)
class Conditions:
    """State of the forward that a pass repeating the head must restore."""

    device: torch.device
    cpu_state: Tensor
    gpu_state: Tensor | None
    #: The dtype that autocast casts to; None if it is off.
    autocast: torch.dtype | None
    #: Those on which the outputs of later layers may depend.
    buffers: dict[nn.Module, Buffers]

    @classmethod
    def now(cls, output: Tensor, model: nn.Module) -> Conditions:
        device = output.device
        return cls(
            device,
            torch.get_rng_state(),
            torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            autocast_dtype(output),
            used_in_training(model),
        )


@dataclass
class Captured:
    """One layer's output in the latest forward."""

    name: str
    #: Evidence from the modules about which axis of the output holds the channels.
    signs: ChannelSigns  # no default: PyTorch 2.11 cannot compile a default that is an object
    output: Tensor | None = None
    version: int = 0
    #: Whether autocast runs the layers above in float16.
    float16: bool = False
    conditions: Conditions | None = None
    runs: int = 0
    problem: str = ""
    #: The autograd node of the output as the layer returned it; None under torch.compile tracing.
    node: Any = None
    #: The key in autograd nodes' metadata that marks runs superseded by a later run.
    mark: str = ""
    #: Whether the latest run superseded one that no loss had taken. The graph of the logits shows whether they depend
    #: on that one too.
    superseded: bool = False

    def clear(self) -> None:
        self.output, self.conditions, self.runs, self.problem = None, None, 0, ""
        self.node, self.superseded = None, False

    def supersede(self) -> None:
        """Marks the node of the previous run, which is no longer held."""
        if self.node is not None:
            self.node.metadata[self.mark] = True

    def give_way(self) -> None:
        """At the start of another forward: clears this record, and marks a run that no loss has taken."""
        untaken = self.output is not None
        self.supersede()
        self.clear()
        self.superseded = untaken

    def released(self) -> Captured:
        """Moves what was captured into a new record, which the caller consumes; this one is cleared."""
        taken = Captured(self.name, self.signs, self.output, self.version, self.float16, self.conditions, self.runs)
        taken.mark, taken.superseded = self.mark, self.superseded
        self.clear()
        return taken

    @property
    def changed_in_place(self) -> bool:
        """Whether a later layer overwrote the output, e.g. `ReLU(inplace=True)`."""
        return self.output is not None and self.output._version != self.version


_NOT_CALLED = (
    "image_size is not known: the model given to this PALLoss was not called as a whole, only parts of it; "
    "construct the PALLoss with the module that you call, or pass image_size=(height, width)"
)
#: How many channels an image has.
_COLOURS = (1, 3, 4)


@dataclass
class InputImage:
    """The size of the image in the latest forward, read from the model's 4-D inputs, or why there is none."""

    size: tuple[int, int] | None = None  # (IH, IW)
    why_none: str = _NOT_CALLED

    def forget(self) -> None:
        self.size, self.why_none = None, _NOT_CALLED

    def read(self, inputs: Iterable[Any]) -> None:
        """Reads the size from the inputs at the start of a forward. A tensor without 1, 3 or 4 channels is not an
        image; with images of several sizes it is ambiguous which of them the landmarks refer to."""
        shapes = [tuple(value.shape) for value in inputs if isinstance(value, Tensor) and value.ndim == 4]
        sizes = {shape[2:] for shape in shapes if shape[1] in _COLOURS}
        self.size = None
        if len(sizes) == 1:
            ((height, width),) = sizes
            self.size = (height, width)
            return
        if sizes:
            reason = f"the model has inputs of several sizes, {shapes}"
        elif any(shape[3] in _COLOURS for shape in shapes):
            reason = f"the model's input, {shapes[0]}, seems to be channels-last, not of shape (B, C, H, W)"
        elif shapes:
            reason = (
                f"the model's input {shapes[0]} does not have the 1, 3 or 4 channels of an image; landmarks are in "
                "image pixels"
            )
        else:
            reason = "the model's input is not an image of shape (B, C, H, W)"
        self.why_none = f"image_size=(height, width) is needed: {reason}"


def tensor_of(output: Any) -> Tensor | None:
    """The tensor that a layer returns, by itself or first in a tuple; None if there is none."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    return None


def with_tensor(output: Any, tensor: Tensor) -> Any:
    """`output` with its tensor replaced."""
    if isinstance(output, Tensor):
        return tensor
    if hasattr(output, "_fields"):  # a NamedTuple takes its values as separate arguments
        return type(output)(tensor, *output[1:])
    return type(output)([tensor, *output[1:]])

"""What one forward leaves behind at a layer, and the size of the image that went in."""

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
    """What a pass that repeats the head must find as it was in the forward."""

    device: torch.device
    cpu_state: Tensor
    gpu_state: Tensor | None
    #: What operations are cast to; None where they are not.
    autocast: torch.dtype | None
    #: Those on which what follows may depend.
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
    #: What the modules tell about which axis of the output holds the channels.
    signs: ChannelSigns  # no default: PyTorch 2.11 does not compile one that is an object
    output: Tensor | None = None
    version: int = 0
    #: Whether autocast casts to float16 what runs above the layer.
    float16: bool = False
    conditions: Conditions | None = None
    runs: int = 0
    problem: str = ""
    #: Where the graph of the output begins, as the layer made it; None where torch.compile traces.
    node: Any = None
    #: The key, in autograd nodes' metadata, that marks those of runs whose place a later run has taken.
    mark: str = ""
    #: Whether the latest run has taken the place of one that no loss had taken: the graph of the logits tells whether
    #: they depend on that one, too.
    superseded: bool = False

    def clear(self) -> None:
        self.output, self.conditions, self.runs, self.problem = None, None, 0, ""
        self.node, self.superseded = None, False

    def supersede(self) -> None:
        """Marks the run before this one, which is held no longer."""
        if self.node is not None:
            self.node.metadata[self.mark] = True

    def give_way(self) -> None:
        """As another forward begins: clears this, and marks a run that no loss has taken."""
        untaken = self.output is not None
        self.supersede()
        self.clear()
        self.superseded = untaken

    def released(self) -> Captured:
        """What was captured, for one who uses it up; nothing is left here."""
        taken = Captured(self.name, self.signs, self.output, self.version, self.float16, self.conditions, self.runs)
        taken.mark, taken.superseded = self.mark, self.superseded
        self.clear()
        return taken

    @property
    def changed_in_place(self) -> bool:
        """Whether a later layer overwrote the output, e.g. `ReLU(inplace=True)`."""
        return self.output is not None and self.output._version != self.version


_NOT_CALLED = (
    "image_size is not known: the model that this PALLoss was made with has not been called itself, only parts of it; "
    "make the PALLoss on the module that you call, or pass image_size=(height, width)"
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
        """From the inputs of a forward that begins. What has not 1, 3 or 4 channels is no image, and images of
        several sizes leave it open which of them the landmarks are on."""
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
            reason = f"the model's input seems to have its channels last, {shapes[0]}, and not the shape (B, C, H, W)"
        elif shapes:
            reason = (
                f"the model's input {shapes[0]} has not the 1, 3 or 4 channels of an image; landmarks are in pixels "
                "of the image"
            )
        else:
            reason = "the model's input is not an image of shape (B, C, H, W)"
        self.why_none = f"image_size=(height, width) is needed: {reason}"


def tensor_of(output: Any) -> Tensor | None:
    """The tensor that a layer returns, alone or first in a tuple."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    return None


def with_tensor(output: Any, tensor: Tensor) -> Any:
    """`output` with its tensor replaced."""
    if isinstance(output, Tensor):
        return tensor
    if hasattr(output, "_fields"):  # a NamedTuple takes its values one by one
        return type(output)(tensor, *output[1:])
    return type(output)([tensor, *output[1:]])

"""Functions whose derivative jumps, and passes that stay on the same side of each jump as a recorded pass.

ReLU, max-pooling and the like are smooth on either side of a kink. A pass that repeats another from a slightly
perturbed input crosses some kinks, and the difference of two such passes then contains jumps of order 1. When replayed,
a ReLU reuses the mask and a pooling the indices of the recorded pass, so that the repeated passes are smooth.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pal_fast.capture.checkpointing import in_checkpointed_segment

#: Parts of the names of autograd nodes whose derivative or value jumps.
_NODES = (
    "ReluBackward",
    "Threshold",
    "HardtanhBackward",
    "HardswishBackward",
    "HardsigmoidBackward",
    "Hardshrink",
    "Softshrink",
    "Prelu",
    "RreluW",
    "MaxPool",
    "MaxUnpool",
    "MaxBackward",
    "MinBackward",
    "AmaxBackward",
    "AminBackward",
    "AminmaxBackward",
    "MaximumBackward",
    "MinimumBackward",
    "FmaxBackward",
    "FminBackward",
    "CummaxBackward",
    "CumminBackward",
    "AbsBackward",
    "SignBackward",
    "RoundBackward",
    "FloorBackward",
    "CeilBackward",
    "TruncBackward",
    "RemainderBackward",
    "FmodBackward",
    "ClampBackward",
    "ClampMinBackward",
    "ClampMaxBackward",
    "MedianBackward",
    "KthvalueBackward",
    "ModeBackward",
    "SortBackward",
    "TopkBackward",
    "FakeQuantize",
    "roi_pool",
    "ROIPool",
)

#: Parts of the names of opaque nodes: compiled and scripted parts, and third-party operators.
_CLOSED = ("CompiledFunction", "DifferentiableGraph", "GeneratedBackwardFor", "CppNode")
#: Parts of the names of third-party functions that are smooth: flash-attn's, xformers', torchvision's.
_SMOOTH = ("FlashAttn", "fMHA", "roi_align", "ROIAlign", "deform_conv", "DeformConv")


def kinks_among(nodes: Sequence[Any]) -> list[str]:
    """The sorted names of the autograd nodes that have a kink."""
    return sorted({node.name() for node in nodes if _has_kink(node)})


def _has_kink(node: Any) -> bool:
    name = node.name()
    if name.startswith("EluBackward"):  # ELU and CELU are smooth enough if alpha=1; SELU is not
        return node._saved_alpha * node._saved_input_scale != 1
    if "batch_norm" in name:  # pal_fast.nn.BatchNorm2d with a fused ReLU
        return bool(getattr(node, "relu", False))
    return any(part in name for part in _NODES)


def hidden_among(nodes: Sequence[Any]) -> list[str]:
    """The sorted names of the autograd nodes that may hide a kink."""
    return sorted({node.name() for node in nodes if _hides(node)})


def _hides(node: Any) -> bool:
    name = node.name()
    if any(part in name for part in (*_SMOOTH, *_NODES)):
        return False
    if any(part in name for part in _CLOSED):
        return True
    function = getattr(type(node), "_forward_cls", None)  # the torch.autograd.Function, if the node is one
    if function is None or getattr(function, "smooth", False):
        return False
    return function.__module__.partition(".")[0] not in ("torch", "pal_fast")


class Sides:
    """The side of each kink that a pass was on, in call order.

    Use `with sides.recording():` around a pass, then `with sides.replaying():` around each repetition of it.
    Both intercept calls from this thread's Python code. Compiled and scripted parts are not intercepted and keep their
    kinks (`kinks_among` finds them in the graph of a replayed pass).
    """

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    def recording(self) -> TorchFunctionMode:
        self._kept.clear()

        def record(find: Callable[[], Tensor]) -> Tensor:
            side = find().detach()
            self._kept.append(side)
            return side

        return _Rewriting(record)

    def replaying(self) -> TorchFunctionMode:
        left = iter(self._kept)

        def replay(find: Callable[[], Tensor]) -> Tensor:
            side = next(left, None)
            if side is None:
                raise RuntimeError("the head calls more functions with kinks than in the recorded pass")
            return side

        return _Rewriting(replay)


#: Takes a function that finds the side and returns the side: found and recorded, or the recorded one.
_Side = Callable[[Callable[[], Tensor]], Tensor]


class _Rewriting(TorchFunctionMode):
    """Replaces calls of functions with kinks by their rewritings, which obtain the side from `side`."""

    def __init__(self, side: _Side) -> None:
        super().__init__()
        self._side = side

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func not in _REWRITINGS or kwargs.get("out") is not None or kwargs.get("return_indices"):
            return func(*args, **kwargs)
        if in_checkpointed_segment():
            raise RuntimeError(
                "second_order='finite_difference' cannot keep a kink on its side in an activation checkpoint, which "
                f"re-runs the original {getattr(func, '__name__', func)}: pass a head= that runs without "
                "checkpointing, or use second_order='exact'"
            )
        rewriting, in_place = _REWRITINGS[func]
        kwargs = {("input" if name == "self" else name): value for name, value in kwargs.items()}
        if not (in_place or kwargs.get("inplace")):
            return rewriting(self._side, *args, **kwargs)
        target: Tensor = args[0] if args else kwargs.pop("input")
        return target.copy_(rewriting(self._side, target.clone(), *args[1:], **kwargs))


def _relu(side: _Side, input: Tensor, inplace: bool = False) -> Tensor:
    return input.masked_fill(side(lambda: input <= 0), 0.0)


def _clamp(side: _Side, input: Tensor, min: Any = None, max: Any = None) -> Tensor:
    result = input
    for bound, beyond in ((min, torch.le), (max, torch.ge)):
        if bound is not None:
            result = torch.where(side(functools.partial(beyond, input, bound)), bound, result)
    return result


def _clamp_min(side: _Side, input: Tensor, min: Any) -> Tensor:
    return _clamp(side, input, min=min)


def _clamp_max(side: _Side, input: Tensor, max: Any) -> Tensor:
    return _clamp(side, input, max=max)


def _hardtanh(side: _Side, input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    return _clamp(side, input, min_val, max_val)


def _relu6(side: _Side, input: Tensor, inplace: bool = False) -> Tensor:
    return _clamp(side, input, 0.0, 6.0)


def _hardsigmoid(side: _Side, input: Tensor, inplace: bool = False) -> Tensor:
    return _clamp(side, input, -3.0, 3.0) / 6 + 0.5


def _hardswish(side: _Side, input: Tensor, inplace: bool = False) -> Tensor:
    return input * _hardsigmoid(side, input)


def _leaky_relu(side: _Side, input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    return torch.where(side(lambda: input > 0), input, input * negative_slope)


def _prelu(side: _Side, input: Tensor, weight: Tensor) -> Tensor:
    if weight.numel() > 1:  # one per channel
        weight = weight.view(-1, *(1,) * (input.ndim - 2))
    return torch.where(side(lambda: input > 0), input, input * weight)


def _abs(side: _Side, input: Tensor) -> Tensor:
    if input.is_complex():  # its absolute value has no two sides
        return input.abs()
    return input * side(lambda: input.sign())


def _max_pool(dimensions: int, pool: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    def max_pool(side: _Side, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        places = side(lambda: pool(input, *args, **kwargs)[1])
        within = input.flatten(-dimensions).gather(-1, places.flatten(-dimensions))
        return within.view(places.shape)

    return max_pool


#: Function -> (its rewriting, whether it works in place).
_REWRITINGS: dict[Any, tuple[Callable[..., Tensor], bool]] = {
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), (_relu, False)),
    **dict.fromkeys((F.relu_, torch.relu_, Tensor.relu_), (_relu, True)),
    **dict.fromkeys((torch.clamp, Tensor.clamp, torch.clip, Tensor.clip), (_clamp, False)),
    **dict.fromkeys((torch.clamp_, Tensor.clamp_, torch.clip_, Tensor.clip_), (_clamp, True)),
    **dict.fromkeys((torch.clamp_min, Tensor.clamp_min), (_clamp_min, False)),
    **dict.fromkeys((torch.clamp_min_, Tensor.clamp_min_), (_clamp_min, True)),
    **dict.fromkeys((torch.clamp_max, Tensor.clamp_max), (_clamp_max, False)),
    **dict.fromkeys((torch.clamp_max_, Tensor.clamp_max_), (_clamp_max, True)),
    **dict.fromkeys((torch.abs, Tensor.abs, Tensor.__abs__), (_abs, False)),
    **dict.fromkeys((F.prelu, torch.prelu, Tensor.prelu), (_prelu, False)),
    F.hardtanh: (_hardtanh, False),
    F.relu6: (_relu6, False),
    F.hardsigmoid: (_hardsigmoid, False),
    F.hardswish: (_hardswish, False),
    F.leaky_relu: (_leaky_relu, False),
    F.hardtanh_: (_hardtanh, True),
    F.leaky_relu_: (_leaky_relu, True),
    **dict.fromkeys((F.max_pool1d, torch.max_pool1d), (_max_pool(1, F.max_pool1d_with_indices), False)),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), (_max_pool(2, F.max_pool2d_with_indices), False)),
    **dict.fromkeys((F.max_pool3d, torch.max_pool3d), (_max_pool(3, F.max_pool3d_with_indices), False)),
    F.adaptive_max_pool1d: (_max_pool(1, F.adaptive_max_pool1d_with_indices), False),
    F.adaptive_max_pool2d: (_max_pool(2, F.adaptive_max_pool2d_with_indices), False),
    F.adaptive_max_pool3d: (_max_pool(3, F.adaptive_max_pool3d_with_indices), False),
}

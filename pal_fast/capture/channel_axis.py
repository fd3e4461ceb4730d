"""Infers from modules which axis of a layer's output holds the channels: second (convolutions) or last (Swin).

Only module types and sizes are inspected, so nothing has to run and it also works in a compiled step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import nn
from torch.nn.modules import batchnorm, conv, pooling

_CONVOLUTION, _NORM = conv._ConvNd, batchnorm._NormBase
_POOL = (
    pooling._MaxPoolNd,
    pooling._AvgPoolNd,
    pooling._AdaptiveAvgPoolNd,
    pooling._AdaptiveMaxPoolNd,
    pooling._LPPoolNd,
)


class Sign(NamedTuple):
    """What one module implies about the channels of its input and output."""

    axis: str  # "second", "last", or "" for a normalisation whose channels may be either
    into: int = 0  # channels of the input; 0 if any
    out: int = 0  # channels of the output; 0 if any


@dataclass(frozen=True)
class ChannelSigns:
    """The signs of the modules in a layer, and of those defined immediately before and after it."""

    inside: tuple[Sign, ...] = ()
    before: Sign | None = None
    after: Sign | None = None

    def are_last(self, second: int, last: int) -> bool | None:
        """Whether the channels of a 4-dimensional output are its last dimension rather than its second; None if
        undecided.

        A layer of only convolutions, their normalisations and pools does not have them last; but it may permute its
        output, so the answer is False only if the sizes do not suggest the last dimension. Otherwise the channels are
        the dimension whose size matches some module's channels (for the last dimension: a module that can have them
        last). If both or neither match, they are last only if everything in and around the layer has them last.

        Args: second, last: the sizes of those dimensions.
        """
        counted = [(sign.axis, sign.out) for sign in self.inside] or self._around
        axes = {axis for axis, _ in counted}
        fits_second = any(count == second for _, count in counted)
        if axes == {"second"}:
            return None if not fits_second and any(count == last for _, count in counted) else False
        fits_last = any(count == last for axis, count in counted if axis != "second")
        if fits_second != fits_last:
            return fits_last
        return True if axes | {axis for axis, _ in self._around} == {"last"} else None

    def are_second_of_three(self, second: int) -> bool:
        """Whether a 3-dimensional output is (B, C, L), of a layer of nothing but convolutions, their normalisations and
        pools whose last dimension has not been turned second."""
        counts = {sign.out for sign in self.inside}
        return {sign.axis for sign in self.inside} == {"second"} and (second in counts or counts == {0})

    @property
    def _around(self) -> list[tuple[str, int]]:
        before = [] if self.before is None else [(self.before.axis, self.before.out)]
        after = [] if self.after is None else [(self.after.axis, self.after.into)]
        return before + after


NO_SIGNS = ChannelSigns()


def signs_of(model: nn.Module, layer: nn.Module) -> ChannelSigns:
    """The signs for `layer`, a module of `model`; neighbours are considered only if `layer` itself has no sign."""
    itself = _sign(layer)
    if itself is not None:
        return ChannelSigns((itself,))
    own = set(layer.modules())
    inside: list[Sign] = []
    before = after = None
    met = False
    for module in model.modules():
        met = met or module in own
        sign = _sign(module)
        if sign is None:
            continue
        if module in own:
            inside.append(sign)
        elif not met:
            before = sign
        elif after is None:
            after = sign
    return ChannelSigns(tuple(dict.fromkeys(inside)), before, after)


def _sign(module: nn.Module) -> Sign | None:
    if isinstance(module, nn.Linear):
        return Sign("last", module.in_features, module.out_features)
    if isinstance(module, _CONVOLUTION):
        return Sign("second", module.in_channels, module.out_channels)
    if isinstance(module, _NORM):
        return Sign("second", module.num_features, module.num_features)
    if isinstance(module, nn.GroupNorm):
        return Sign("second", module.num_channels, module.num_channels)
    if isinstance(module, _POOL):
        return Sign("second")
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and len(module.normalized_shape) == 1:
        return Sign(_axis_of_layer_norm(module), *module.normalized_shape * 2)
    return None


#: The modules that define a forward which normalises the last axis: PyTorch's, and that of `prepare_head`.
_OF_THE_LAST_AXIS = ("torch.nn.modules.normalization", "pal_fast.nn.layer_norm")


def _axis_of_layer_norm(module: nn.LayerNorm | nn.RMSNorm) -> str:
    """torchvision's and timm's LayerNorm2d are LayerNorms that permute the channels last and back; other subclasses
    may do so too."""
    if type(module).__name__.lower().endswith("2d"):
        return "second"
    return "last" if type(module).forward.__module__ in _OF_THE_LAST_AXIS else ""

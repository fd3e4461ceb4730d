"""What modules tell of where a layer's output has its channels: second, as after a convolution, or last, as in Swin.

Only the kinds and the sizes of modules are looked at, so that nothing has to run, and a compiled step can ask too.
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
    """What one module tells of the channels of what it reads and returns."""

    axis: str  # where they are: "second", "last", or "" for a normalisation of channels that may be either
    into: int = 0  # how many; 0 if any
    out: int = 0


@dataclass(frozen=True)
class ChannelSigns:
    """What the modules in a layer tell, and the ones that are defined right before and after it."""

    inside: tuple[Sign, ...] = ()
    before: Sign | None = None
    after: Sign | None = None

    def are_last(self, second: int, last: int) -> bool | None:
        """Whether the channels are the last dimension of a 4-dimensional output, whose second and last dimensions are
        given, and not the second; None if that cannot be told.

        A layer of nothing but convolutions, their normalisations and pools never has them last; it may turn them, so
        that it has them second only if the sizes do not speak for the last. Otherwise they are the dimension that is
        as large as some module's channels (last: of a module that can have them last); where both are or neither is,
        everything in and around the layer must have them last.
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
    """What the modules of `model` tell of its module `layer`; its neighbours only if it does not tell by itself."""
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


#: Where the forward is written that normalises the last axis: PyTorch's, and that of `prepare_head`'s twin.
_OF_THE_LAST_AXIS = ("torch.nn.modules.normalization", "pal_fast.nn.layer_norm")


def _axis_of_layer_norm(module: nn.LayerNorm | nn.RMSNorm) -> str:
    """torchvision's and timm's LayerNorm2d are LayerNorms that turn the channels last and back; others may be."""
    if type(module).__name__.lower().endswith("2d"):
        return "second"
    return "last" if type(module).forward.__module__ in _OF_THE_LAST_AXIS else ""

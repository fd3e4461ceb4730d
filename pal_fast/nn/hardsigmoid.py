"""Activations without a second derivative in PyTorch, expressed by operators that have one."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pal_fast import _checks


class Hardsigmoid(nn.Hardsigmoid):
    """`torch.nn.Hardsigmoid` as `relu6(x + 3) / 6`: the same values and gradients, twice differentiable.

    Input and output have any shape. `inplace` is ignored.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.relu6(input + 3) / 6


def replace_hardsigmoid(model: nn.Module) -> tuple[str, ...]:
    """Turns every `torch.nn.Hardsigmoid` of `model` into a twice differentiable `pal_fast.nn.Hardsigmoid`, in place.

    The layers have no parameters, so state_dict and results stay the same. MobileNetV3 needs this.

    Returns: the dotted names of the replaced modules.

    Raises: TypeError unless `model` is a module.
    """
    _checks.module("model", model)
    replaced = [name for name, module in model.named_modules() if type(module) is nn.Hardsigmoid]
    for name in replaced:
        model.get_submodule(name).__class__ = Hardsigmoid
    return tuple(replaced)

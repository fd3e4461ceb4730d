"""Autograd for operators, at the price of the call itself: reverse mode, while forward mode is refused.

`torch.library.register_autograd` asks the operator's schema for the defaults of arguments that were left out, in time
quadratic in their number: 0.1 ms for the 20 arguments of the loss, more than all else that Python does there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

_libraries: list[Any] = []  # An operator's registration ends with the object that made it.


def register_derivative(
    name: str,
    backward: Callable[..., Any],
    *,
    setup_context: Callable[..., None] | None = None,
    keys: Sequence[str] = ("Autograd",),
) -> None:
    """As `torch.library.register_autograd`, for an operator that is always called with all its arguments.

    Args:
        name: "namespace::operator".
        backward: from the context and the outputs' gradients to one gradient, or None, for each argument.
        setup_context: keeps in the context what `backward` needs, of `inputs` and `output`.
        keys: the dispatcher's that it is for. A composite operator's own kernel goes before one of "Autograd", but not
            before those of the devices, "AutogradCPU" and its like.
    """
    namespace, _, operator_name = name.partition("::")
    operator = getattr(getattr(torch.ops, namespace), operator_name).default

    def forward(ctx: Any, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = operator(*arguments)
        if setup_context is not None:
            setup_context(ctx, arguments, output)
        return output

    # The class's name is that of the node in the autograd graph.
    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    derived: Any = type(f"{namespace}_{operator_name}", (torch.autograd.Function,), members)

    def call(*arguments: Any) -> Any:
        if forward_ad._current_level >= 0:
            _refuse_tangents(name, arguments)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
            return derived.apply(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)

    library = torch.library.Library(namespace, "IMPL")
    for key in keys:
        library.impl(operator_name, call, key)
    _libraries.append(library)


def _refuse_tangents(name: str, arguments: Sequence[Any]) -> None:
    """Below autograd they would be dropped, which is a derivative of zero.

    Raises: NotImplementedError saying what has one.
    """
    for argument in arguments:
        if isinstance(argument, torch.Tensor) and forward_ad.unpack_dual(argument).tangent is not None:
            raise NotImplementedError(
                f"{name} has no forward-mode derivative (torch.func.jvp, torch.autograd.forward_ad): for the loss and "
                'the heatmap use backend="reference", and PyTorch\'s own layer in place of one of pal_fast.nn '
                "(prepare_head's handle puts it back: restore())"
            )

"""Autograd for operators without overhead beyond the call itself: reverse mode only; forward mode is refused.

`torch.library.register_autograd` looks up the defaults of omitted arguments in the operator's schema, in time quadratic
in the number of arguments: 0.1 ms for the 20 arguments of the loss, more than everything else that Python does there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

_libraries: list[Any] = []  # An operator's registration lasts only as long as its Library object.


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
        backward: maps the context and the outputs' gradients to one gradient, or None, per argument.
        setup_context: saves what `backward` needs of `inputs` and `output` in the context.
        keys: the dispatch keys to register for. A composite operator's own kernel takes precedence over "Autograd", but
            not over the keys of devices, such as "AutogradCPU".
    """
    namespace, _, operator_name = name.partition("::")
    operator = getattr(getattr(torch.ops, namespace), operator_name).default

    def forward(ctx: Any, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = operator(*arguments)
        if setup_context is not None:
            setup_context(ctx, arguments, output)
        return output

    # The class's name becomes the name of the node in the autograd graph.
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
    """Refuses forward-mode tangents: below autograd they would be dropped, giving a derivative of zero.

    Raises: NotImplementedError naming the alternatives.
    """
    for argument in arguments:
        if isinstance(argument, torch.Tensor) and forward_ad.unpack_dual(argument).tangent is not None:
            raise NotImplementedError(
                f"{name} has no forward-mode derivative (torch.func.jvp, torch.autograd.forward_ad): for the loss and "
                'the heatmap use backend="reference"; for a layer of pal_fast.nn use PyTorch\'s own layer '
                "(restore() of prepare_head's handle puts it back)"
            )

"""Records the operator calls of a piece of code."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class OperatorCalls(TorchDispatchMode):
    """Records the operators that run inside: `names`, and for each backward of a layer which gradients are `wanted`."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.wanted: list[tuple[bool, ...]] = []  # input, weight, bias

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        if [argument.name for argument in func._schema.arguments][-1:] == ["output_mask"]:
            self.wanted.append(tuple(args[-1]))
        return func(*args, **(kwargs or {}))

    @property
    def computing(self) -> int:
        """The number of calls that compute something."""
        return sum(map(computes, self.names))


def computes(name: str) -> bool:
    return not any(view in name for view in ("detach", "view", "expand"))

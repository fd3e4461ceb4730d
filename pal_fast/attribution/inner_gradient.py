"""`torch.autograd.grad` for arguments that are already checked, without the cost of its own checks.

The public function checks types, overrides, shapes and dtypes: 20 to 40 us of Python, a third of what PALLoss may add
to a step. The function it then calls is private, so it is tested once per process; if it behaves differently, or
anything overrides PyTorch's functions, the public function is the fallback.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.compiler import is_compiling


def inner_gradient(
    output: Tensor | GradientEdge, inputs: Sequence[Tensor], seed: Tensor, *, create_graph: bool
) -> tuple[Tensor | None, ...]:
    """The vector-Jacobian product of `output` with `seed`, of its shape, for each input; the graph is retained.

    Returns: a gradient for each input; None where `output` does not depend on it.
    """
    if not is_compiling() and type(output) is Tensor and type(seed) is Tensor and not _overridden():
        run = _run_backward()
        if run is not None:
            found: tuple[Tensor | None, ...] = run(
                (output,), (seed,), True, create_graph, tuple(inputs), True, accumulate_grad=False
            )
            return found
    return torch.autograd.grad(
        output, list(inputs), seed, create_graph=create_graph, retain_graph=True, allow_unused=True
    )


def _overridden() -> bool:
    """Whether a mode intercepts PyTorch's functions, or a transform (vmap, functorch's grad) is active."""
    return bool(torch._C._len_torch_function_stack()) or torch._C._functorch.peek_interpreter_stack() is not None


@lru_cache(maxsize=1)
def _run_backward() -> Callable[..., Any] | None:
    """The private function that `torch.autograd.grad` calls, if it behaves as expected; otherwise None."""
    run: Callable[..., Any] | None = getattr(torch.autograd.graph, "_engine_run_backward", None)
    if run is None:
        return None
    try:
        with torch.enable_grad():
            x, unused = (torch.ones(2, device="cpu", requires_grad=True) for _ in range(2))
            first, none = run((x**3,), (torch.ones_like(x),), True, True, (x, unused), True, accumulate_grad=False)
            (second,) = torch.autograd.grad(first.sum(), x)
    except Exception:  # another release may raise anything
        return None
    return run if none is None and x.grad is None and bool((first == 3).all() & (second == 6).all()) else None

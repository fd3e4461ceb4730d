"""`torch.autograd.grad` for arguments that are checked already, without the price of its own checks.

The public function looks at types, overrides, shapes and dtypes: 20 to 40 us of Python, a third of what PALLoss may add
to a step. What it then calls is not public, so it is tried out once per process, and where it is not what it was, or
anything overrides PyTorch's functions, the public function serves.
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
    """The gradients of `output`, weighted with `seed` of its shape, for each input; the graph is kept.

    Returns: None where `output` does not depend on an input.
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
    """Whether a mode intercepts PyTorch's functions, or a transform (vmap, functorch's grad) runs."""
    return bool(torch._C._len_torch_function_stack()) or torch._C._functorch.peek_interpreter_stack() is not None


@lru_cache(maxsize=1)
def _run_backward() -> Callable[..., Any] | None:
    """What `torch.autograd.grad` calls, if it does what it did; else None."""
    run: Callable[..., Any] | None = getattr(torch.autograd.graph, "_engine_run_backward", None)
    if run is None:
        return None
    try:
        with torch.enable_grad():
            x, unused = (torch.ones(2, device="cpu", requires_grad=True) for _ in range(2))
            first, none = run((x**3,), (torch.ones_like(x),), True, True, (x, unused), True, accumulate_grad=False)
            (second,) = torch.autograd.grad(first.sum(), x)
    except Exception:  # of another release, whatever it says
        return None
    return run if none is None and x.grad is None and bool((first == 3).all() & (second == 6).all()) else None

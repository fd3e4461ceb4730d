"""What subjects share of their peers: a formula under torch.compile, and the package's own backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pal_fast import dispatch
from pal_fast.messages import first_line

from .harness import UnavailableError


def compiled(formula: Callable[..., Tensor], *arguments: Any) -> Callable[..., Tensor]:
    """The formula, compiled for these arguments.

    Raises: UnavailableError if the compiler fails, so that the other peers go on.
    """
    torch._dynamo.reset()
    run = torch.compile(formula, fullgraph=True, dynamic=False)
    try:
        run(*arguments)
    except Exception as error:
        raise UnavailableError(f"torch.compile failed: {first_line(error)[:80]}") from error
    return run


def check_backend(backend: str, device: torch.device) -> None:
    """Raises: UnavailableError if a backend cannot run on `device`."""
    reason = dispatch.why_not(backend, device)
    if reason:
        raise UnavailableError(reason)

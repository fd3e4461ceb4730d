"""Lightning Fabric, which mistakes the inner gradient for a backward pass outside of `fabric.backward` and raises.

With a precision or strategy that has its own backward pass (mixed precision, for example), Fabric registers a hook on
the output that raises unless `fabric.backward` is running. The inner gradient is not the step's backward pass: it
scales and reduces nothing, and the loss goes through `fabric.backward` afterwards.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from pal_fast import _checks

#: The modules in which Fabric records that its backward pass is running (packages lightning and lightning-fabric).
_WRAPPERS = ("lightning.fabric.wrappers", "lightning_fabric.wrappers")
_NOTE = "_in_fabric_backward"

#: DeepSpeed's engine reduces and frees in its backward pass. It has not been tested with this loss.
_DEEPSPEED = "deepspeed.runtime.engine"


def is_imported() -> bool:
    """Whether Lightning Fabric is imported, from either of its packages."""
    return any(name in sys.modules for name in _WRAPPERS)


@contextlib.contextmanager
def inner_gradients() -> Iterator[None]:
    """Inside, the output of a Fabric model may be differentiated; all other hooks on it run as usual.

    Raises: NotReadyError where Fabric still refuses: under DeepSpeed, whose check is left in place.
    """
    loaded: list[Any] = [sys.modules[name] for name in _WRAPPERS if name in sys.modules]
    noting = [] if _DEEPSPEED in sys.modules else [module for module in loaded if hasattr(module, _NOTE)]
    before = [getattr(module, _NOTE) for module in noting]
    for module in noting:
        setattr(module, _NOTE, True)
    try:
        yield
    except RuntimeError as error:
        if "fabric.backward" not in str(error):
            raise
        raise _checks.NotReadyError(
            "Lightning Fabric does not allow this model's output to be differentiated outside of fabric.backward, and "
            "what its strategy would do inside the step is unknown: choose a strategy that is not DeepSpeed, or "
            "a precision without its own backward pass, such as '32-true'"
        ) from error
    finally:
        for module, was in zip(noting, before, strict=True):
            setattr(module, _NOTE, was)

"""Lightning Fabric, which mistakes the inner gradient for a backward pass outside of `fabric.backward`, and raises.

With a precision or strategy that has a backward pass of its own (mixed precision, say) Fabric registers a hook on the
output, which raises unless `fabric.backward` is under way. The inner gradient is no backward pass of the step: it
scales nothing and reduces nothing, and the loss goes through `fabric.backward` afterwards.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from pal_fast import _checks

#: Where Fabric notes that its backward pass is under way, in the packages lightning and lightning-fabric.
_WRAPPERS = ("lightning.fabric.wrappers", "lightning_fabric.wrappers")
_NOTE = "_in_fabric_backward"

#: DeepSpeed's engine reduces and frees in its backward pass. It has not been tried under this loss.
_DEEPSPEED = "deepspeed.runtime.engine"


def is_imported() -> bool:
    """Whether Lightning Fabric is, in either of its packages."""
    return any(name in sys.modules for name in _WRAPPERS)


@contextlib.contextmanager
def inner_gradients() -> Iterator[None]:
    """Inside, gradients may be taken of the output of a Fabric model; all other hooks on it run as ever.

    Raises: NotReadyError where Fabric refuses them nevertheless: under DeepSpeed, where they are left refused.
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
            "Lightning Fabric lets no gradient be taken of this model's output outside of fabric.backward, and what "
            "its strategy would do with one inside the step is not known: choose a strategy that is not DeepSpeed, or "
            "a precision without a backward pass of its own, such as '32-true'"
        ) from error
    finally:
        for module, was in zip(noting, before, strict=True):
            setattr(module, _NOTE, was)

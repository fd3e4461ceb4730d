"""Whether triton's interpreter works with the installed numpy. Imported where triton interprets."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def count_kernel(count_ptr, count):
    total = 0
    for _ in range(count):
        total += 1
    tl.store(count_ptr, total)


def why_not() -> str:
    """Why the interpreter cannot run a kernel with a loop; "" if it can.

    Triton 3.6's interpreter converts a one-element array to int, which numpy refuses since 2.4.
    """
    import numpy

    count = torch.zeros((), dtype=torch.int32)
    try:
        count_kernel[(1,)](count, 3)
    except triton.runtime.errors.InterpreterError as error:
        return f"the interpreter of triton {triton.__version__} fails beside numpy {numpy.__version__}: {error}"
    assert count.item() == 3
    return ""

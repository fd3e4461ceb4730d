"""Sets the number of threads that PyTorch uses inside a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread, as in processes with OMP_NUM_THREADS=1, so that sums are bit-identical; a test's decorator too.

    The number before is restored, whatever the code inside sets.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

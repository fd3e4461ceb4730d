"""Small training runs on drawn faces that take seconds on one core."""

from __future__ import annotations

import pytest
from support.threads import one_thread


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """One thread, also in module-scoped fixtures: on small runs, synchronising threads costs more than it gains."""
    with one_thread():
        yield

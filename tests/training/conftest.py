"""Small training runs on drawn faces that take seconds on one core."""

from __future__ import annotations

import pytest
from support.threads import one_thread


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """For the fixtures of the modules too: threads that wait for each other cost more than they save."""
    with one_thread():
        yield

"""Small trainings on drawn faces that take seconds on one core."""

from __future__ import annotations

import pytest

pytest.importorskip("accelerate", reason="accelerate is not installed (extra train)")
pytest.importorskip("torchvision", reason="torchvision is not installed (extra train)")
pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra train)")

from support.small_training import one_thread


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """For the fixtures of the modules too: threads that wait for each other cost more than they save."""
    with one_thread():
        yield

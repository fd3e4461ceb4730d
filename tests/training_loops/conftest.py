"""Shared set-up of the torch.compile tests; hides the test folder `triton`, which torch.compile would import."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support.triton_namesake import hide

hide()


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Resets torch.compile's caches before and after the test."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()

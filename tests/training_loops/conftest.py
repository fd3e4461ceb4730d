"""Shared set-up of the torch.compile tests; hides the test folder `triton`, which torch.compile would import."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support.networks import batch
from support.triton_namesake import hide
from torch.utils.data import TensorDataset

hide()


@pytest.fixture
def data() -> TensorDataset:
    """Eight samples of an image and a label."""
    return TensorDataset(*batch(8, dtype=torch.float32))


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Resets torch.compile's caches before and after the test."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()

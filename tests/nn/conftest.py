"""Inputs of the networks whose head is prepared."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 16, 16, dtype=torch.float64)


@pytest.fixture
def landmarks() -> Tensor:
    return torch.rand(4, 9, 2, dtype=torch.float64) * 16

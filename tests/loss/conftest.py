"""A small network, and a batch for it: images, labels, landmarks."""

from __future__ import annotations

import pytest
import torch
from support.networks import SmallNet, batch


@pytest.fixture
def model():
    return SmallNet()


@pytest.fixture
def data():
    return batch(dtype=torch.float32)

"""For tests of torch.compile, which looks for triton."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support.triton_namesake import hide

hide()


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """What was compiled for other tests is forgotten, and so is what this one compiles."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()

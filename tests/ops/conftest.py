"""The compiled backends of this machine: always the CPU's, and CUDA's if there is a GPU."""

from __future__ import annotations

import pytest
import torch

from pal_fast import dispatch


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def backend(request: pytest.FixtureRequest) -> str:
    """The name of a compiled backend, which is also the device of its tensors."""
    reason = dispatch.why_not(request.param, torch.device(request.param))
    assert not reason, reason
    return request.param

"""The benchmark of the loader: both sides do the same work, and landmarks stay cheap."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("PIL")

from benchmarks import loading


@pytest.fixture
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.filterwarnings("ignore:.*classes without images")
def test_landmarks_cost_little_beside_the_image() -> None:
    """The limit is for a quiet machine; what is caught here is landmarks that cost as much as the image."""
    without, with_landmarks, ratio = loading.measure(loading.Case(100, 224), rounds=9, count=16)
    assert without > 0
    assert with_landmarks > 0
    assert ratio < 1.35

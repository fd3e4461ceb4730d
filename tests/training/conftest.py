"""Small trainings on drawn faces that take seconds on one core."""

from __future__ import annotations

import pytest

pytest.importorskip("accelerate", reason="accelerate is not installed (extra train)")
pytest.importorskip("torchvision", reason="torchvision is not installed (extra train)")
pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra train)")

"""The images of the tests of extraction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.extraction import COUNT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    for k in range(COUNT):
        path = tmp_path / "images" / f"{k % 2}" / f"{k:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(np.full((8, 9, 3), k, np.uint8)).save(path)
    return tmp_path / "images"

"""A stand-in for the landmark network, and checks of what an extraction with it wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pal_fast.landmarks import read_landmark_set

COUNT = 11


class StubPredictor:
    """Stub for the network: every landmark's x is the image's first pixel value, and every fourth image has no face."""

    def __init__(self, fail_at: int | None = None, error: BaseException | None = None) -> None:
        self.seen: list[str] = []
        self.batches = 0
        self.fail_at, self.error = fail_at, error

    def __call__(self, names: Sequence[str], files: Sequence[Path], images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        if self.batches == self.fail_at and self.error is not None:
            raise self.error
        self.batches += 1
        self.seen += names
        values = torch.stack([image[0, 0, 0].float() for image in images])
        points = torch.stack([values[:, None].expand(-1, 68), torch.arange(68.0).expand(len(images), -1)], -1)
        points[values % 4 == 3] = torch.nan
        return points, points[..., 0] / 255


def value_of(name: str) -> int:
    return int(Path(name).stem)


def check(path: Path, names: set[str] | None = None) -> None:
    marks = read_landmark_set(path)
    assert list(marks.names) == sorted(marks.names)
    if names is not None:
        assert set(marks.names) == names
    for name, points, found in zip(marks.names, marks.points, marks.found, strict=True):
        assert bool(found) == (value_of(name) % 4 != 3)
        assert not found or bool((points[:, 0] == value_of(name)).all())


def all_names() -> set[str]:
    return {f"{k % 2}/{k:02d}.png" for k in range(COUNT)}

"""Landmarks that are not in pixels, found where a data set is opened: after a transform they are harder to tell."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pal_fast import _checks


def refuse_normalised(points: Tensor, size_of: Callable[[int], tuple[int, int]], source: str) -> None:
    """Raises ValueError where most annotated images have their landmarks as normalised ones lie.

    Args:
        points: (N, K, 2), NaN where one is missing.
        size_of: (height, width) of the image of that row; asked for one image at most, and only on suspicion.
        source: where the landmarks come from, for the message.
    """
    known = points.isfinite().all(-1)
    annotated = int(known.any(1).sum())
    suspect = _checks.look_normalised(points, known, (_checks.LEAST_SIDE, _checks.LEAST_SIDE))
    count = int(suspect.sum())
    if 2 * count <= annotated:
        return
    height, width = size_of(int(suspect.nonzero()[0]))
    if min(height, width) < _checks.LEAST_SIDE:
        return
    low, high = (values.tolist() for values in (points[suspect][known[suspect]].aminmax(dim=0)))
    raise ValueError(
        f"{source}: of {count} of {annotated} annotated images all landmarks lie within {_checks.CORNER} pixels of the "
        f"image's corner (x from {low[0]:.4g} to {high[0]:.4g}, y from {low[1]:.4g} to {high[1]:.4g}), as normalised "
        f"ones do: they are wanted in pixels of the image, {height} x {width} (height x width) for the first; "
        f"{_checks.IN_PIXELS}"
    )

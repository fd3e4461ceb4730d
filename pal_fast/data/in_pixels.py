"""Landmarks that are not in pixels, found where a data set is opened: after a transform they are harder to tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from pal_fast import _checks
from pal_fast.landmarks.errors import first_few
from pal_fast.warn import warn


def check_in_pixels(
    points: Tensor, names: Sequence[str], size_of: Callable[[int], tuple[int, int]], source: str
) -> None:
    """Raises ValueError where most annotated images have their landmarks as normalised ones lie, warns where some do.

    Args:
        points: (N, K, 2), NaN where one is missing.
        names: N names of images.
        size_of: (height, width) of the image of that row; asked for one image at most, and only on suspicion.
        source: where the landmarks come from, for the message.
    """
    known = points.isfinite().all(-1)
    annotated = int(known.any(1).sum())
    suspect = _checks.look_normalised(points, known, (_checks.LEAST_SIDE, _checks.LEAST_SIDE))
    rows = suspect.nonzero().flatten().tolist()
    if not rows:
        return
    height, width = size_of(rows[0])
    if min(height, width) < _checks.LEAST_SIDE:
        return
    low, high = (values.tolist() for values in (points[suspect][known[suspect]].aminmax(dim=0)))
    text = (
        f"{source}: of {len(rows)} of {annotated} annotated images all landmarks lie within {_checks.CORNER} pixels of "
        f"the image's corner (x from {low[0]:.4g} to {high[0]:.4g}, y from {low[1]:.4g} to {high[1]:.4g}), as "
        f"normalised ones do: they are wanted in pixels of the image, "
        f"{height} x {width} (height x width) for the first; {_checks.IN_PIXELS}"
    )
    if 2 * len(rows) > annotated:
        raise ValueError(text)
    warn(f"{text}; or give NaN where no face was found: {first_few([names[row] for row in rows])}")

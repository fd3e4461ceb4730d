"""What the landmarks of faces never look like, told where a file or a data set is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from torch import Tensor

from pal_fast.warn import warn

#: Of the 68-point scheme.
_EYES: Final = slice(36, 48)
_MOUTH: Final = slice(48, 68)


def warn_unless_upright(points: Tensor, source: str | Path) -> None:
    """Warns where in most faces the mouth does not lie below the eyes: x and y are exchanged, as a rule.

    Args:
        points: (N, K, 2), (x, y), NaN where one is missing; only the 68-point scheme is looked at.
        source: where they come from, for the message.
    """
    if points.shape[1] != 68:
        return
    right, down = (points[:, _MOUTH].nanmean(1) - points[:, _EYES].nanmean(1)).unbind(-1)  # (N,)
    judged = int((right.isfinite() & down.isfinite()).sum())
    lying = int((down <= right.abs()).sum())
    if 2 * lying > judged:
        warn(
            f"{source}: in {lying} of {judged} faces the mouth (points 48-67) does not lie below the eyes (36-47): "
            "are x and y exchanged? format='x-y' reads lines of x and y, format='row-column' those of row and column"
        )

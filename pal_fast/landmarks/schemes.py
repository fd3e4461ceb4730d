"""Numbering schemes of facial landmarks: mirror pairs, and the reduction of larger schemes to the 68-point one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor

from pal_fast import _checks

# Pairs of (subject's right, subject's left); a point without a partner lies on the midline.
_PAIRS_68 = [
    *((i, 16 - i) for i in range(8)),
    *((17 + i, 26 - i) for i in range(5)),
    *[(31, 35), (32, 34)],
    *[(36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46)],
    *[(48, 54), (49, 53), (50, 52), (55, 59), (56, 58), (60, 64), (61, 63), (65, 67)],
]
_PAIRS_98 = [
    *((i, 32 - i) for i in range(16)),
    *((33 + i, 46 - i) for i in range(5)),
    *((38 + i, 50 - i) for i in range(4)),
    *[(55, 59), (56, 58)],
    *[(60, 72), (61, 71), (62, 70), (63, 69), (64, 68), (65, 75), (66, 74), (67, 73)],
    *[(76, 82), (77, 81), (78, 80), (83, 87), (84, 86), (88, 92), (89, 91), (93, 95), (96, 97)],
]


def _mirror(count: int, pairs: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    order = list(range(count))
    for right, left in pairs:
        order[right], order[left] = left, right
    return tuple(order)


#: By number of landmarks, for known schemes: entry k is the landmark that k becomes under a flip.
MIRROR: Final[dict[int, tuple[int, ...]]] = {
    5: _mirror(5, [(0, 1), (3, 4)]),  # eyes, nose, mouth corners (RAF-DB manual; dlib's order differs)
    68: _mirror(68, _PAIRS_68),  # 300-W / iBUG
    98: _mirror(98, _PAIRS_98),  # WFLW
}


_MIRROR_INDEX: Final = {count: torch.tensor(order) for count, order in MIRROR.items()}


def renumber_mirrored(points: Tensor, *, dim: int = -2) -> Tensor:
    """Renumbers the landmarks of a flipped image, so that left and right are numbered as in an unflipped one.

    A scheme that is not in `MIRROR` keeps its order: a heatmap over all landmarks does not depend on it.

    Args:
        points: (..., K, 2).
        dim: the dimension of the landmarks: -1 renumbers `visible` or weights, (..., K), in their place.

    Raises: TypeError, ValueError for anything else.
    """
    if dim == -1:
        _checks.instance("points", points, Tensor, "a tensor of shape (..., K)")
    else:
        _checks.points("points", points)
    order = _MIRROR_INDEX.get(points.shape[dim])
    return points if order is None else points.index_select(dim, order.to(points.device))


_WFLW_TO_68 = (
    *range(0, 33, 2),
    *range(33, 38),
    *range(42, 47),
    *range(51, 60),
    *(60, 61, 63, 64, 65, 67),
    *(68, 69, 71, 72, 73, 75),
    *range(76, 96),
)
# The points of MediaPipe's mesh nearest to the 68-point scheme (the jaw's are on the face oval).
_MEDIAPIPE_TO_68 = (
    *(162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389),
    *(71, 63, 105, 66, 107, 336, 296, 334, 293, 301),
    *(168, 197, 5, 4, 75, 97, 2, 326, 305),
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),
    *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181),
    *(78, 82, 13, 312, 308, 317, 14, 87),
)
_TO_68 = {68: tuple(range(68)), 98: _WFLW_TO_68, 468: _MEDIAPIPE_TO_68, 478: _MEDIAPIPE_TO_68}


def to_68_points(points: Tensor) -> Tensor:
    """Reduces WFLW's 98 or MediaPipe's 468 or 478 points to the 68-point scheme.

    Args: points (..., K, 2).
    Returns: (..., 68, 2).
    Raises: TypeError, ValueError for anything else, such as another K.
    """
    _checks.points("points", points)
    order = _TO_68.get(points.shape[-2])
    if order is None:
        known = ", ".join(map(str, _TO_68))
        raise ValueError(f"points can be reduced to 68 landmarks from {known}, got {points.shape[-2]}")
    return points[..., list(order), :]

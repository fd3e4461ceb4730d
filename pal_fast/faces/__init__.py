"""Faces drawn on the fly: seven expressions, 68 landmarks each, and a background cue that may mislead.

A data set for demonstrations, tests and controlled studies, without a download: the expression is in the
brows, eyes, mouth and jaw, which move by the action units of a face, while a coloured badge in the background
can agree with the label. Training a network where it agrees, and testing it where it does not, shows whether
the network looked at the face.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from pal_fast import _checks
from pal_fast.faces.paint import paint
from pal_fast.faces.people import CUE_COLOURS, Lots, meet
from pal_fast.faces.shape import EXPRESSION_UNITS

__all__ = ["CUE_COLOURS", "EXPRESSIONS", "FaceSet", "make_faces"]

#: The expressions; a label is an index into this tuple.
EXPRESSIONS: Final[tuple[str, ...]] = tuple(EXPRESSION_UNITS)

_PIXELS_AT_ONCE: Final = 64 * 48 * 48  # keeps the renderer's working arrays in cache


@dataclass(frozen=True)
class FaceSet:
    """N drawn faces.

    Attributes:
        images: (N, 3, S, S) float32 in [0, 1], RGB.
        labels: (N,) int64, index into `EXPRESSIONS`; what the annotator wrote.
        landmarks: (N, 68, 2) float32, (x, y) in pixels of the image, integer = pixel centre, numbered as in
            300-W; exact, even outside the image.
        expressions: (N,) int64, what is drawn; differs from `labels` only under `label_noise`.
        cues: (N,) int64, the colour of the badge, index into `CUE_COLOURS`.
    """

    images: Tensor
    labels: Tensor
    landmarks: Tensor
    expressions: Tensor
    cues: Tensor

    def __len__(self) -> int:
        return self.images.shape[0]


def make_faces(
    count: int,
    size: int = 48,
    *,
    seed: int = 0,
    cue_agreement: float | None = 0.9,
    label_noise: float = 0.0,
    occlusion: float = 0.0,
    scatter: float = 0.0,
) -> FaceSet:
    """Draws `count` faces of `size` x `size` pixels.

    The same seed gives the same faces at every size, and the same first n faces for every count; only the
    pixel noise depends on the size. Expressions are equally likely.

    Args:
        count: number of faces, 0 or more.
        size: side of the images in pixels, 16 or more.
        seed: 0 or more. Use different seeds for training and test faces.
        cue_agreement: probability that the badge in the background has the colour of the label; if it
            does not, any other colour is equally likely. None draws the colour independently of the label.
        label_noise: probability that the label is one of the six expressions that the face does not show.
        occlusion: probability that a square patch covers part of the face. Landmarks do not change.
        scatter: how far from the centre faces may lie, as a share of the side, in x and in y; 0 to 0.5. By default
            they are centred to within a few pixels, as in data sets of aligned faces.

    Raises: TypeError, ValueError naming the argument, unless it is a number in its range.
    """
    for name, number, least in (("count", count, 0), ("size", size, 16), ("seed", seed, 0)):
        _checks.whole_number(name, number, least)
    _checks.probability("label_noise", label_noise)
    _checks.probability("occlusion", occlusion)
    if cue_agreement is not None:
        _checks.probability("cue_agreement", cue_agreement)
    _checks.number_within("scatter", scatter, 0, 0.5)

    lots = Lots(count, seed)
    classes = len(EXPRESSIONS)
    expressions = lots.one_of(classes)
    mistaken, which = lots.chance(label_noise), lots.one_of(classes - 1)
    labels = torch.where(mistaken, (expressions + 1 + which) % classes, expressions)
    agrees, other, free = lots.uniform(), lots.one_of(classes - 1), lots.one_of(classes)
    cues = (
        free if cue_agreement is None else torch.where(agrees < cue_agreement, labels, (labels + 1 + other) % classes)
    )

    people = meet(expressions, cues, lots, size, occlusion, scatter)
    grain = np.random.default_rng([seed, 1])
    images = torch.empty(count, 3, size, size)
    step = max(1, _PIXELS_AT_ONCE // size**2)
    for start in range(0, count, step):
        stop = min(start + step, count)
        noise = grain.standard_normal((stop - start, size, size, 3), dtype=np.float32)
        images[start:stop] = paint(people.part(start, stop), size, torch.from_numpy(noise))
    return FaceSet(images, labels, people.landmarks, expressions, cues)

"""Detection of landmarks that are not in pixels of their image, when a data set is opened and at a transform's first
faces, since after that they look like any others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from pal_fast.messages import first_few
from pal_fast.suspect_landmarks import LEAST_SIDE, coincide, look_normalised, normalised_text
from pal_fast.warn import warn


def check_in_pixels(
    points: Tensor, names: Sequence[str], size_of: Callable[[int], tuple[int, int]], source: str
) -> None:
    """Raises ValueError if most annotated images have landmarks that look normalised; warns if some do.

    Args:
        points: (N, K, 2), NaN for missing ones.
        names: N names of images.
        size_of: (height, width) of the image of that row; called for one image at most, and only on suspicion.
        source: where the landmarks come from, for the message.
    """
    known = points.isfinite().all(-1)
    annotated = int(known.any(1).sum())
    suspect = look_normalised(points, known, (LEAST_SIDE, LEAST_SIDE))
    rows = suspect.nonzero().flatten().tolist()
    if not rows:
        return
    height, width = size_of(rows[0])
    if min(height, width) < LEAST_SIDE:
        return
    text = normalised_text(
        f"{source}: in {len(rows)} of {annotated} annotated images all landmarks",
        points[suspect][known[suspect]],
        f"the image, {height} x {width} (height x width) for the first",
    )
    if 2 * len(rows) > annotated:
        raise ValueError(text)
    warn(f"{text}; or give NaN where no face was found: {first_few([names[row] for row in rows])}")


class FirstLook:
    """Checks landmarks until one face is plausible, usually the first.

    The first face whose landmarks look normalised causes a warning, and a second one before any plausible face an
    error. Faces without landmarks, and images too small to tell, are skipped. Every worker of a loader has its own.
    """

    def __init__(self) -> None:
        self.over = False
        self._warned = False

    def __call__(self, points: Tensor, image_size: tuple[int, int]) -> None:
        """Args: points (K, 2) of any real dtype, as given; image_size (height, width).

        Raises: ValueError.
        """
        faces = points.as_subclass(Tensor)[None].float()
        known = faces.isfinite().all(-1)
        if min(image_size) < LEAST_SIDE or not known.any() or coincide(faces, known):
            return
        if not look_normalised(faces, known, image_size):
            self.over = True
            return
        image = f"the image, {image_size[0]} x {image_size[1]} (height x width)"
        text = normalised_text("landmarks: all of this face's", faces[known], image)
        if self._warned:
            raise ValueError(f"{text}; so did the face before")
        self._warned = True
        warn(text)

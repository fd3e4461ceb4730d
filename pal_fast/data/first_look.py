"""A transform's look at the first faces that it is given: afterwards normalised landmarks look like any others."""

from __future__ import annotations

from torch import Tensor

from pal_fast import _checks
from pal_fast.warn import warn


class FirstLook:
    """Looks at landmarks until a face clears them, which the first one does as a rule.

    A face whose landmarks lie as normalised ones do is warned of; the second one before any other is refused. Faces
    without landmarks, and those of images too small to tell, are passed over. Every worker of a loader has its own.
    """

    def __init__(self) -> None:
        self.over = False
        self._warned = False

    def __call__(self, points: Tensor, image_size: tuple[int, int]) -> None:
        """Args: points (K, 2) of any real dtype, as they were given; image_size (height, width).

        Raises: ValueError.
        """
        faces = points.as_subclass(Tensor)[None].float()
        known = faces.isfinite().all(-1)
        if min(image_size) < _checks.LEAST_SIDE or not known.any() or _checks.coincide(faces, known):
            return
        if not _checks.look_normalised(faces, known, image_size):
            self.over = True
            return
        (left, top), (right, bottom) = (values.tolist() for values in faces[known].aminmax(dim=0))
        text = (
            f"landmarks: all of this face's lie within {_checks.CORNER} pixels of the image's corner "
            f"(x from {left:.4g} to {right:.4g}, y from {top:.4g} to {bottom:.4g}), as normalised ones do: they are "
            f"wanted in pixels of the image, {image_size[0]} x {image_size[1]} (height x width); {_checks.IN_PIXELS}"
        )
        if self._warned:
            raise ValueError(f"{text}; the face before had them, too")
        self._warned = True
        warn(text)

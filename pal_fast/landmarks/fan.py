"""68 landmarks by the package face-alignment, in batches: its FAN network and its face detectors."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlparse

import torch
from torch import Tensor

from pal_fast import _checks
from pal_fast.landmarks.fan_geometry import INPUT_SIZE, peaks, to_image, window_of
from pal_fast.landmarks.geometry import crop_window
from pal_fast.landmarks.schemes import MIRROR

DETECTORS: Final = ("sfd", "blazeface", "retinaface", "yunet")

#: (left, top, right, bottom) from the image's corner.
FaceBox = tuple[float, float, float, float]

#: (name, file, image) to the face's box; None for no face.
BoxFinder = Callable[[str, Path, Tensor], FaceBox | None]

_LANDMARKS: Final = 68

#: Pixels per detector batch: its first layers hold 256 bytes for each, several times over.
_DETECTED_PIXELS: Final = 1 << 22


class FaceAligner:
    """Finds 68 landmarks, one face for each image.

    Args:
        find_box: returns each image's face box; None detects faces and takes the largest.
        device: "cpu", "cuda" or "cuda:0".
        detector: face-alignment's detector, if faces are detected.
        flip: average the heatmaps of each crop and its mirror image, as face-alignment does; twice the work.
        package: an object with `face_alignment_net` and `face_detector`; None creates face-alignment's.

    Raises: ImportError without face-alignment; FileNotFoundError that says which weights to put where.
    """

    def __init__(
        self,
        find_box: BoxFinder | None = None,
        *,
        device: str = "cpu",
        detector: str = "sfd",
        flip: bool = True,
        package: Any = None,
    ) -> None:
        _checks.choice("detector", detector, DETECTORS)
        # The detector "folder" has no network, so none has to be on the machine if none is needed.
        self._package = _load(device, detector if find_box is None else "folder") if package is None else package
        self._find_box = find_box
        # The other detectors process a batch image by image, or return coordinates of a reduced image.
        self._in_batches = detector == "sfd"
        self._reference = float(self._package.face_detector.reference_scale)
        self._device = torch.device(device)
        self._flip = flip

    @torch.inference_mode()
    def __call__(self, names: Sequence[str], files: Sequence[Path], images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Landmarks of images (3, H, W) uint8.

        Returns: points (B, 68, 2) float32, (x, y) in pixels, integer = pixel centre; scores (B, 68), the values of the
        heatmaps' peaks, about 1 where the network is certain. Both NaN for an image without a face.
        """
        points = torch.full((len(images), _LANDMARKS, 2), torch.nan)
        scores = torch.full((len(images), _LANDMARKS), torch.nan)
        if self._find_box is None:
            boxes = self._detect(images)
        else:
            boxes = [self._find_box(*given) for given in zip(names, files, images, strict=True)]
        rows = [row for row, box in enumerate(boxes) if box is not None]
        if rows:
            windows = [window_of(box, self._reference) for box in boxes if box is not None]
            crops = [
                crop_window(images[row].to(self._device), at, INPUT_SIZE) for row, at in zip(rows, windows, strict=True)
            ]
            shares, values = peaks(self._heatmaps(torch.stack(crops)).float())
            points[rows] = to_image(shares, windows).cpu()
            scores[rows] = values.cpu()
        return points, scores

    def _heatmaps(self, crops: Tensor) -> Tensor:
        """(B, 3, 256, 256) -> (B, 68, 64, 64)."""

        def last(output: Any) -> Tensor:
            return output[-1] if isinstance(output, (list, tuple)) else output

        heatmaps = last(self._package.face_alignment_net(crops))
        if self._flip:
            mirrored = last(self._package.face_alignment_net(crops.flip(-1)))
            heatmaps = (heatmaps + mirrored[:, list(MIRROR[_LANDMARKS])].flip(-1)) / 2
        return heatmaps

    def _detect(self, images: Sequence[Tensor]) -> list[FaceBox | None]:
        """The largest face in each image; images of equal size are batched."""
        detector = self._package.face_detector
        boxes: list[FaceBox | None] = [None] * len(images)
        for rows in self._groups(images):
            if len(rows) > 1:
                found = detector.detect_from_batch(torch.stack([images[row] for row in rows]))
            else:
                found = [detector.detect_from_image(images[rows[0]].permute(1, 2, 0).contiguous().numpy())]
            for row, faces in zip(rows, found, strict=True):
                boxes[row] = _largest(faces)
        return boxes

    def _groups(self, images: Sequence[Tensor]) -> list[list[int]]:
        """Indices of the images that go through the detector together."""
        if not self._in_batches:
            return [[row] for row in range(len(images))]
        sizes: dict[tuple[int, ...], list[int]] = {}
        for row, image in enumerate(images):
            sizes.setdefault(tuple(image.shape), []).append(row)
        groups = []
        for (_, height, width), rows in sizes.items():
            count = max(1, _DETECTED_PIXELS // (height * width))
            groups += [rows[start : start + count] for start in range(0, len(rows), count)]
        return groups


def _largest(faces: Sequence[Any]) -> FaceBox | None:
    boxes = [tuple(float(value) for value in box[:4]) for box in faces]
    largest = max(boxes, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]), default=None)
    return None if largest is None else (largest[0], largest[1], largest[2], largest[3])


def _load(device: str, detector: str) -> Any:
    try:
        import face_alignment
    except ImportError as error:
        if "face_alignment" in str(error) or "face-alignment" in str(error):
            raise ImportError("extracting landmarks needs face-alignment: pip install 'pal_fast[landmarks]'") from error
        raise ImportError(f"face-alignment cannot be imported: {error}") from error
    wanted = _weights(detector)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return face_alignment.FaceAlignment(
                face_alignment.LandmarksType.TWO_D, device=device, face_detector=detector, compile=False
            )
    except Exception as error:  # urllib, torch.load and load_state_dict raise errors of any type
        lacking = [(url, file) for url, file in wanted if not file.exists()]
        if lacking:
            listed = "\n".join(f"  {url}\n    as {file}" for url, file in lacking)
            raise FileNotFoundError(
                f"face-alignment has no weights and cannot fetch them ({error}). Put\n{listed}"
            ) from error
        listed = ", ".join(str(file) for _, file in wanted)
        raise RuntimeError(
            f"face-alignment cannot load its weights ({error}). Remove the one that is broken, to have it fetched "
            f"again: {listed}"
        ) from error


def _weights(detector: str) -> list[tuple[str, Path]]:
    """(URL, file in the cache) of the weights that face-alignment loads for 2D landmarks and this detector."""
    from face_alignment import api

    urls = [api.models_urls["2DFAN-4"]]
    if detector != "folder":
        module = importlib.import_module(f"face_alignment.detection.{detector}.{detector}_detector")
        known = getattr(module, "models_urls", None) or {"": module.model_url}
        urls += [url for name, url in known.items() if "back" not in name]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return [(url, folder / os.path.basename(urlparse(url).path)) for url in urls]

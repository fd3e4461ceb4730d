"""The positions of eyes and mouth in RAF-DB's aligned images, measured by registering these to their originals.

RAF-DB documents that it aligns three points, but not to which positions. A copy reveals them: they are the positions
for which the originals, warped by the resulting similarity transforms, look like the aligned images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.optim import LBFGS

from pal_fast.image_files import read_image
from pal_fast.landmarks.geometry import fit_similarity, invert, transform_points
from pal_fast.landmarks.rafdb import ALIGNED_SIZE, TEMPLATE, anchors, read_manual

#: Blur of the aligned images in pixels, coarse to fine.
_BLURS: Final = (6.0, 3.0, 1.0)
_OVERSAMPLED: Final = 1.5  # pixels of a reduced original per pixel of the aligned image


@dataclass(frozen=True)
class Measurement:
    """The result of a measurement.

    Attributes:
        template: (3, 2) float32, for `aligned_transform`. Only the resulting transforms are well determined: if all
            faces have the same proportions of eyes and mouth, several templates lead to the same transforms.
        correlation: between the aligned images and the originals warped by it, 1 at best.
    """

    template: Tensor
    correlation: float


def measure_template(root: str | Path, count: int = 48) -> Measurement:
    """Measures the template on `count` images spread over RAF-DB's basic folder, starting from `TEMPLATE`.

    Raises: FileNotFoundError without `Image/original`, `Image/aligned` and `Annotation/manual`.
    """
    root = Path(root)
    files = sorted((root / "Annotation" / "manual").glob("*_manu_attri.txt"))
    stems = [file.name.removesuffix("_manu_attri.txt") for file in files]
    stems = [stem for stem in stems if _aligned(root, stem).is_file() and _original(root, stem).is_file()]
    if not stems:
        raise FileNotFoundError(
            f"{root} must hold Image/original/NAME.jpg, Image/aligned/NAME_aligned.jpg and "
            "Annotation/manual/NAME_manu_attri.txt to measure the template on"
        )
    stems = stems[:: max(1, len(stems) // count)][:count]
    template = torch.tensor(TEMPLATE)
    pairs = [_Pair.read(root, stem, template) for stem in stems]
    template = template.clone().requires_grad_()
    for blur in _BLURS:
        wanted = [_blurred(pair.aligned, blur) for pair in pairs]
        optimiser = LBFGS([template], max_iter=20, tolerance_change=1e-4, line_search_fn="strong_wolfe")

        def disagreement(wanted: list[Tensor] = wanted, blur: float = blur, step: LBFGS = optimiser) -> Tensor:
            step.zero_grad()
            scores = [pair.agreement(template, of, blur) for pair, of in zip(pairs, wanted, strict=True)]
            loss = 1 - torch.stack(scores).mean()
            loss.backward()
            return loss

        optimiser.step(disagreement)
    with torch.no_grad():
        final = [pair.agreement(template, pair.aligned, 0.0) for pair in pairs]
    return Measurement(template.detach(), float(torch.stack(final).mean()))


def _aligned(root: Path, stem: str) -> Path:
    return root / "Image" / "aligned" / f"{stem}_aligned.jpg"


def _original(root: Path, stem: str) -> Path:
    return root / "Image" / "original" / f"{stem}.jpg"


def _blurred(image: Tensor, sigma: float) -> Tensor:
    """(H, W) convolved with a Gaussian."""
    if not sigma:
        return image
    reach = int(3 * sigma + 1)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = torch.nn.functional.pad(image[None, None], [reach] * 4, mode="replicate")
    along_x = torch.nn.functional.conv2d(padded, kernel.view(1, 1, 1, -1))
    return torch.nn.functional.conv2d(along_x, kernel.view(1, 1, -1, 1))[0, 0]


@dataclass(frozen=True)
class _Pair:
    """An original image, reduced to about the scale of its aligned image, and the aligned image, both grey.

    Attributes: original (h, w); anchors (3, 2) in its pixels; aligned (100, 100).
    """

    original: Tensor
    anchors: Tensor
    aligned: Tensor

    @classmethod
    def read(cls, root: Path, stem: str, template: Tensor) -> _Pair:
        manual = torch.from_numpy(read_manual(root / "Annotation" / "manual" / f"{stem}_manu_attri.txt"))
        original = read_image(_original(root, stem)).float().mean(0) / 255
        places = anchors(manual)
        matrix = fit_similarity(places, template)
        shrink = float(matrix[0, :2].norm()) * _OVERSAMPLED
        if shrink < 1:
            height, width = original.shape
            size = [max(1, round(height * shrink)), max(1, round(width * shrink))]
            original = torch.nn.functional.interpolate(
                original[None, None], size, mode="bilinear", antialias=True, align_corners=False
            )[0, 0]
            ratio = torch.tensor([size[1] / width, size[0] / height])
            places = (places + 0.5) * ratio - 0.5
        return cls(original, places, read_image(_aligned(root, stem)).float().mean(0) / 255)

    def agreement(self, template: Tensor, wanted: Tensor, blur: float) -> Tensor:
        """The correlation of the original, warped by the template, with the aligned image where both are defined."""
        height, width = self.original.shape
        steps = torch.arange(float(ALIGNED_SIZE))
        grid = torch.stack([steps.expand(ALIGNED_SIZE, -1), steps[:, None].expand(-1, ALIGNED_SIZE)], -1)
        source = transform_points(grid.view(-1, 2), invert(fit_similarity(self.anchors, template)))
        places = ((source + 0.5) / torch.tensor([width, height]) * 2 - 1).view(1, ALIGNED_SIZE, ALIGNED_SIZE, 2)
        # Beyond the original there is only RAF-DB's filling, which does not count.
        inside = (places.detach().abs() < 1).all(-1)[0].float()
        scale = 1.0 / float(fit_similarity(self.anchors, template.detach())[0, :2].norm())
        original = _blurred(self.original, blur * scale) if blur else self.original
        seen = torch.nn.functional.grid_sample(
            original[None, None], places, mode="bilinear", padding_mode="border", align_corners=False
        )[0, 0]
        weight = inside / inside.sum().clamp_min(1)
        a, b = seen - (seen * weight).sum(), wanted - (wanted * weight).sum()
        return (a * b * weight).sum() / ((a * a * weight).sum() * (b * b * weight).sum()).sqrt().clamp_min(1e-12)

"""Heatmaps of landmarks, against kornia, mmpose's and face-alignment's drawing, and a matrix product.

    python -m benchmarks.heatmap            growth with batch, landmarks and size; results in benchmarks/results
    python -m benchmarks.heatmap --quick    one small case, seconds

The heatmap has the image's size, so that cells are pixels and all definitions agree on the landmarks' positions. These
lie within the middle half of the image, so that no patch is clipped at the border.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import pal_fast
from pal_fast import reference

from . import heatmap_peers as peers
from . import own_peers
from .command import main_of, run_subject
from .harness import BOUNDS, Peer, Prepared, Subject, UnavailableError, upstream_of


@dataclass(frozen=True)
class HeatmapCase:
    batch: int
    landmarks: int
    side: int  # cells and pixels, height and width

    @property
    def size(self) -> tuple[int, int]:
        return self.side, self.side

    @property
    def sigma(self) -> float:
        """1/16 of the image, rounded, because the patches cover whole pixels."""
        return float(max(1, round(self.side / 16)))

    def columns(self) -> dict[str, object]:
        return {"B": self.batch, "K": self.landmarks, "H": self.side, "W": self.side, "dtype": "float32"}

    def __str__(self) -> str:
        return f"{self.batch} heatmaps of {self.landmarks} landmarks, {self.side} x {self.side}"


#: The case named by the targets, whose 51 MB fit in the L2 cache of an H200 (60 MB), and one of 205 MB, which do not.
GPU_BASE = HeatmapCase(256, 68, 224)
GPU_LARGE = HeatmapCase(1024, 68, 224)


def cases(device: torch.device, quick: bool) -> Sequence[HeatmapCase]:
    if quick:
        return [HeatmapCase(2, 5, 32)]
    base = GPU_BASE if device.type == "cuda" else HeatmapCase(16, 68, 112)
    batches = (4, 16, 64, 256, 1024) if device.type == "cuda" else (1, 4, 16, 64)
    counts = (5, 21, 68, 98, 468) if device.type == "cuda" else (5, 21, 68, 98)
    sides = (28, 56, 112, 224, 448) if device.type == "cuda" else (28, 56, 112, 224)
    grown = [HeatmapCase(batch, base.landmarks, base.side) for batch in batches]
    grown += [HeatmapCase(base.batch, count, base.side) for count in counts]
    grown += [HeatmapCase(base.batch, base.landmarks, side) for side in sides]
    first = [base, GPU_LARGE] if device.type == "cuda" else [base]
    return list(dict.fromkeys([*first, *grown]))


def landmarks(case: HeatmapCase, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(case.batch * 7919 + case.landmarks)
    points = torch.rand(case.batch, case.landmarks, 2, generator=generator) * 0.5 + 0.25
    return (points * case.side).to(device).requires_grad_()


def formula(points: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """The separable sum, as an einsum of two thin tensors."""
    return reference.landmark_heatmap(points, size, image_size=size, sigma=sigma)


def judge(case: HeatmapCase, device: torch.device) -> list[Tensor]:
    points = landmarks(case, device).detach().double().requires_grad_()
    heatmap = formula(points, case.size, case.sigma)
    return [heatmap.detach(), *torch.autograd.grad(heatmap, points, upstream_of(heatmap))]


def einsum(case: HeatmapCase, device: torch.device) -> Prepared:
    points = landmarks(case, device)
    return Prepared(lambda: formula(points, case.size, case.sigma), (points,))


def compiled(case: HeatmapCase, device: torch.device) -> Prepared:
    points = landmarks(case, device)
    run = own_peers.compiled(formula, points, case.size, case.sigma)
    return Prepared(lambda: run(points, case.size, case.sigma), (points,))


def ours(backend: str) -> Callable[[HeatmapCase, torch.device], Prepared]:
    def prepare(case: HeatmapCase, device: torch.device) -> Prepared:
        own_peers.check_backend(backend, device)
        points = landmarks(case, device)
        return Prepared(
            lambda: pal_fast.landmark_heatmap(points, case.size, sigma=case.sigma, backend=backend), (points,)
        )

    return prepare


#: Elements of one map per landmark; kornia's renderer holds several such tensors.
MOST_MAPS = {"cpu": 1 << 28, "cuda": 3 << 29}
#: Drawing in NumPy takes about 0.1 ms per landmark.
MOST_DRAWN = {"cpu": 1 << 30, "cuda": 2048}


def kornia(case: HeatmapCase, device: torch.device) -> Prepared:
    _refuse_maps(case, MOST_MAPS[device.type])
    return peers.kornia_heatmap(landmarks(case, device), case.size, case.sigma)


def _refuse_maps(case: HeatmapCase, most: int) -> None:
    if case.batch * case.landmarks * case.side**2 > most:
        raise UnavailableError(f"its maps of every landmark would take over {4 * most / (1 << 30):.0f} GB")


def kornia_judge(case: HeatmapCase, device: torch.device) -> list[Tensor]:
    return peers.kornia_judge(landmarks(case, device), case.size, case.sigma)


def drawing(draw: Callable[..., object]) -> Callable[[HeatmapCase, torch.device], Prepared]:
    def prepare(case: HeatmapCase, device: torch.device) -> Prepared:
        _refuse_maps(case, MOST_MAPS["cpu"])
        if case.batch * case.landmarks > MOST_DRAWN[device.type]:
            raise UnavailableError("drawing so many landmarks in NumPy takes a second a call")
        return peers.drawn(draw, landmarks(case, device), case.size, case.sigma)

    return prepare


def mmpose_judge(case: HeatmapCase, device: torch.device) -> list[Tensor]:
    return [peers.mmpose_judge(landmarks(case, device).detach(), case.size, case.sigma)]


def face_alignment_judge(case: HeatmapCase, device: torch.device) -> list[Tensor]:
    return [peers.face_alignment_judge(landmarks(case, device).detach(), case.size, case.sigma)]


SUBJECT = Subject(
    name="heatmap",
    peers=[
        Peer("kornia render_gaussian2d", kornia, judge=kornia_judge, package="kornia", note="each normalised"),
        Peer("mmpose drawing", drawing(peers.mmpose_heatmap), judge=mmpose_judge, note="NumPy, cut at 3 sigma"),
        Peer(
            "face-alignment drawing",
            drawing(peers.face_alignment_heatmap),
            judge=face_alignment_judge,
            note="NumPy, cut at 3 sigma",
        ),
        # Coordinates and exponents in plain float32: the same function, with an error of 2e-5 in the gradient.
        Peer("einsum", einsum, bound=1e-4),
        Peer("compiled einsum", compiled, bound=1e-4),
        Peer("cpu", ours("cpu")),
        Peer("triton", ours("triton")),
        Peer("cuda", ours("cuda")),
    ],
    cases=cases,
    judge=judge,
    bound=lambda case: BOUNDS[torch.float32],
    traffic=lambda case, mode: 4 * case.batch * case.side**2 if mode == "forward" else None,
    work=lambda case, mode: 2 * case.batch * case.landmarks * case.side**2 if mode == "forward" else None,
    yardstick="write",
)


def run(options: argparse.Namespace) -> int:
    return run_subject(SUBJECT, options)


main = main_of(SUBJECT.name, run, __doc__)

if __name__ == "__main__":
    raise SystemExit(main())

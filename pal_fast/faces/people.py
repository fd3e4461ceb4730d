"""Who is in the picture: everything about a face that is sampled before the first pixel is drawn.

All random numbers of a face are one row of a table of uniform numbers, so the first n faces of a seed are the same
for every count, and the faces are the same at every size. Lengths are in pixels or in the face's frame
(`shape.py`), colours are RGB in [0, 1].
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import torch
from torch import Tensor

from pal_fast.faces import shape

Outline = tuple[tuple[float, float], ...]

LOTS: Final = 160  # columns of the table; more than are used, so that a new one does not shift the others

SKIN_TONES: Final = (
    *((0.99, 0.87, 0.78), (0.95, 0.78, 0.65), (0.87, 0.67, 0.51)),
    *((0.73, 0.52, 0.37), (0.53, 0.35, 0.24), (0.35, 0.22, 0.15)),
)
HAIR_COLOURS: Final = (
    *((0.07, 0.06, 0.06), (0.16, 0.10, 0.07), (0.29, 0.18, 0.10), (0.45, 0.28, 0.14)),
    *((0.55, 0.22, 0.10), (0.80, 0.63, 0.36), (0.62, 0.61, 0.60)),
)
EYE_COLOURS: Final = ((0.20, 0.11, 0.06), (0.36, 0.22, 0.10), (0.25, 0.42, 0.60), (0.30, 0.45, 0.30))
CUE_COLOURS: Final = tuple(colorsys.hsv_to_rgb(k / 7, 0.85, 0.95) for k in range(7))


def _mirrored(half: Outline) -> Outline:
    """An outline from its left half and its point on the midline."""
    return half + tuple((-x, y) for x, y in half[-2::-1])


#: Outlines in the face's frame that carry no landmark: the skull above the ears, the outside of the hair, its
#: edge on the forehead, and long hair behind the head.
SKULL: Final = _mirrored(((-0.985, -0.48), (-0.92, -0.76), (-0.73, -1.02), (-0.39, -1.18), (0.0, -1.22)))
CROWN: Final = _mirrored(((-1.03, -0.12), (-1.09, -0.55), (-0.98, -0.97), (-0.57, -1.29), (0.0, -1.39)))
HAIRLINE: Final = _mirrored(((-0.955, -0.20), (-0.90, -0.52), (-0.72, -0.80), (-0.36, -0.92), (0.0, -0.94)))
MANE: Final = _mirrored(((-1.07, -0.30), (-1.12, 0.10), (-1.15, 0.40), (-0.98, 0.60), (0.0, 0.58)))


class Lots:
    """Draws random values from successive columns of the table; every value is (N,)."""

    def __init__(self, count: int, seed: int) -> None:
        self._table = torch.from_numpy(np.random.default_rng([seed, 0]).random((count, LOTS)))
        self._columns = iter(self._table.unbind(1))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        return (low + (high - low) * next(self._columns)).float()

    def spare(self, index: int, low: float, high: float) -> Tensor:
        """Uniform, from the columns at the far end: for values that are sampled only on request."""
        return (low + (high - low) * self._table[:, -1 - index]).float()

    def normal(self, deviation: float = 1.0) -> Tensor:
        """Normal, clamped at 2.3 standard deviations."""
        return deviation * torch.special.ndtri(next(self._columns).clamp(0.01, 0.99)).float()

    def chance(self, probability: float) -> Tensor:
        return next(self._columns) < probability

    def one_of(self, count: int) -> Tensor:
        return (next(self._columns) * count).long()

    def mixture(self, colours: tuple[tuple[float, float, float], ...]) -> Tensor:
        """A colour between two neighbours in the list, (N, 3)."""
        palette = torch.tensor(colours)
        position = self.uniform(0, len(colours) - 1)
        low = position.long().clamp(0, len(colours) - 2)
        return torch.lerp(palette[low], palette[low + 1], (position - low)[:, None])

    def colour(self, saturation: tuple[float, float], value: tuple[float, float]) -> Tensor:
        """A colour of any hue, (N, 3)."""
        hue, s, v = self.uniform(), self.uniform(*saturation), self.uniform(*value)
        wheel = (hue[:, None] * 6 + torch.tensor([0.0, 4.0, 2.0])) % 6
        return v[:, None] * (1 - s[:, None] * (1 - ((wheel - 3).abs() - 1).clamp(0, 1)))


@dataclass(frozen=True)
class People:
    """N faces, ready to be drawn. Points are (N, P, 2) in pixels, colours (N, 3), the rest (N,) unless noted."""

    landmarks: Tensor  # (N, 68, 2)
    skull: Tensor
    crown: Tensor
    hairline: Tensor
    mane: Tensor
    ears: Tensor  # (N, 2, 2), left and right
    units: Tensor  # (N, U), strength of each action unit
    centre: Tensor  # (N, 2)
    scale: Tensor  # pixels per unit of the face's frame
    roll: Tensor  # radians
    gaze: Tensor  # (N, 2), in units of the face's frame
    light: Tensor  # (N, 3), unit vector towards the light; x right, y down, z to the camera
    contrast: Tensor  # strength of the shading of the face
    exposure: Tensor
    warmth: Tensor
    noise: Tensor  # standard deviation of the pixel noise
    skin: Tensor
    hair: Tensor
    hairiness: Tensor  # 0 for a shaved head
    brow_thickness: Tensor
    lips: Tensor
    iris: Tensor
    shirt: Tensor
    wall: Tensor  # (N, 2, 3): the end colours of the background's gradient
    wall_angle: Tensor
    badge: Tensor  # (N, 2), centre of the cue
    badge_colour: Tensor
    glasses: Tensor  # 1 where glasses are worn
    patch: Tensor  # (N, 2), centre of the occluding patch
    patch_radius: Tensor  # pixels; 0 where nothing is covered
    patch_colour: Tensor

    def __len__(self) -> int:
        return self.landmarks.shape[0]

    def part(self, start: int, stop: int) -> People:
        return People(**{field.name: getattr(self, field.name)[start:stop] for field in fields(self)})


def meet(expressions: Tensor, cues: Tensor, lots: Lots, size: int, occlusion: float, scatter: float) -> People:
    """Samples people who show `expressions` (N,) next to badges of colours `cues` (N,)."""
    count = expressions.shape[0]
    names = shape.unit_numbers()

    typical = shape.expression_units()[expressions]  # (N, U)
    intensity = lots.uniform(0.85, 1.25)[:, None]
    per_unit = torch.stack([1 + lots.normal(0.15) for _ in names], 1)
    resting = torch.stack([lots.uniform(0, 1) ** 3 * 0.10 for _ in names], 1)
    units = (typical * intensity * per_unit + resting).clamp(0, 1.3)
    lopsided = torch.stack([lots.normal(0.07) for _ in names], 1)
    sides = torch.stack([units * (1 - lopsided), units * (1 + lopsided)], 1)  # (N, 2, U)
    identity = torch.stack([lots.normal() for _ in shape.IDENTITY], 1)

    yaw, pitch = lots.normal(0.16), lots.normal(0.08)
    roll = lots.normal(0.13)
    scale = lots.uniform(0.265, 0.32) * size
    centre = torch.stack([lots.normal(0.025), lots.normal(0.02)], 1) * size + (size - 1) / 2
    centre[:, 1] += 0.03 * size
    centre += torch.stack([lots.spare(0, -scatter, scatter), lots.spare(1, -scatter, scatter)], 1) * size

    def picture(points: Tensor, depth: Tensor) -> Tensor:
        return shape.place(shape.turn(points, depth, yaw, pitch), centre, scale, roll)

    def flat(points: Outline, depth: float) -> Tensor:
        table = torch.tensor(points).expand(count, -1, -1)
        return picture(table, torch.full((len(points),), depth))

    hairline = torch.tensor(HAIRLINE[::-1]).repeat(count, 1, 1)
    recede, wave, parting = lots.uniform(-0.08, 0.16), lots.normal(0.07), lots.uniform(0, 2 * math.pi)
    inner = slice(2, 7)
    swing = torch.sin(hairline[:, inner, 0] * 3.0 + parting[:, None])
    hairline[:, inner, 1] += recede[:, None] + wave[:, None] * swing
    mane = torch.tensor(MANE).repeat(count, 1, 1)
    long, length, spread = lots.chance(0.45), lots.uniform(0.1, 1.1), lots.uniform(0.95, 1.12)
    mane[:, 1:8, 1] += length[:, None] * torch.tensor([0.3, 0.8, 1.0, 1.0, 1.0, 0.8, 0.3])
    mane[:, 1:8, 0] *= spread[:, None]
    short = mane * torch.tensor([0.85, 0.0]) - torch.tensor([0.0, 0.3])  # behind the head
    mane = torch.where(long[:, None, None], mane, short)

    skin = lots.mixture(SKIN_TONES)
    grey = lots.uniform(0, 0.2)[:, None]
    red = torch.tensor([0.70, 0.20, 0.22])
    light = torch.stack([lots.normal(0.55), -lots.uniform(0.1, 0.7), torch.ones(count)], 1)

    corner = lots.one_of(4)
    side = torch.stack([corner % 2, corner // 2], 1).float()
    inset = torch.stack([lots.uniform(0.10, 0.13), lots.uniform(0.10, 0.13)], 1)
    badge = (side * (1 - 2 * inset) + inset) * size - 0.5
    tint = torch.stack([lots.normal(0.03) for _ in range(3)], 1)

    landmarks = picture(shape.face_landmarks(sides, identity), shape.depth())
    covered = lots.chance(occlusion)
    target = landmarks[torch.arange(count), 17 + lots.one_of(51)]

    return People(
        landmarks=landmarks,
        skull=flat(SKULL[::-1], -0.12),
        crown=flat(CROWN, -0.18),
        hairline=picture(hairline, torch.full((9,), -0.05)),
        mane=picture(mane, torch.full((9,), -0.3)),
        ears=flat(((-1.03, 0.04), (1.03, 0.04)), -0.62),
        units=units,
        centre=centre,
        scale=scale,
        roll=roll,
        gaze=torch.stack([lots.normal(0.022), lots.normal(0.008)], 1),
        light=light / light.norm(dim=1, keepdim=True),
        contrast=lots.uniform(0.25, 0.6),
        exposure=lots.uniform(0.8, 1.12),
        warmth=lots.normal(0.04),
        noise=lots.uniform(0.005, 0.03),
        skin=skin,
        hair=torch.lerp(lots.mixture(HAIR_COLOURS), torch.tensor(0.5), grey),
        hairiness=1 - lots.chance(0.08).float(),
        brow_thickness=lots.uniform(0.75, 1.3),
        lips=torch.lerp(skin, red, lots.uniform(0.3, 0.6)[:, None]) * 0.93,
        iris=lots.mixture(EYE_COLOURS),
        shirt=lots.colour((0.1, 0.7), (0.25, 0.9)),
        wall=torch.stack([lots.colour((0.03, 0.3), (0.45, 0.95)), lots.colour((0.03, 0.3), (0.35, 0.9))], 1),
        wall_angle=lots.uniform(0, 2 * math.pi),
        badge=badge,
        badge_colour=(torch.tensor(CUE_COLOURS)[cues] + tint).clamp(0, 1),
        glasses=lots.chance(0.15).float(),
        patch=target,
        patch_radius=torch.where(covered, lots.uniform(0.25, 0.5) * scale, torch.zeros(count)),
        patch_colour=lots.colour((0.1, 0.6), (0.2, 0.9)),
    )

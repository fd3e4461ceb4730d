"""The features of a face, drawn from its landmarks: folds, nose, eyes, brows, mouth, glasses."""

from __future__ import annotations

import torch

from pal_fast.faces import shape
from pal_fast.faces.brush import modelling, pieces_per_curve, stroke
from pal_fast.faces.draw import Canvas, blob, coverage, curve, disc, ellipse, polygon, polyline
from pal_fast.faces.people import People

_UNIT = {number: column for column, number in enumerate(shape.unit_numbers())}
_TEETH = torch.tensor([0.96, 0.95, 0.91])
_TONGUE = torch.tensor([0.75, 0.33, 0.34])
_THROAT = torch.tensor([0.20, 0.06, 0.06])
_SCLERA = torch.tensor([0.97, 0.96, 0.95])


def wrinkles(canvas: Canvas, people: People) -> None:
    """The folds that action units cause: beside the mouth, between the brows, on the forehead and nose."""
    p, pieces = people.landmarks, pieces_per_curve(canvas)
    dark = people.skin * torch.tensor([0.66, 0.56, 0.52])
    unit = {number: people.units[:, column] for number, column in _UNIT.items()}
    across = (p[:, 45] - p[:, 36]) / (p[:, 45] - p[:, 36]).norm(dim=1, keepdim=True) * people.scale[:, None]
    down = torch.stack([-across[:, 1], across[:, 0]], 1)

    fold = (0.06 + 0.40 * unit[12] + 0.45 * unit[10] + 0.35 * unit[9]).clamp(0, 0.75)
    for wing, corner, sign in ((31, 48, -1.0), (35, 54, 1.0)):
        start = p[:, wing] + sign * 0.05 * across - 0.04 * down
        end = p[:, corner] + sign * 0.11 * across - 0.02 * down
        middle = (start + end) / 2 + sign * 0.05 * across
        stroke(canvas, people, curve(torch.stack([start, middle, end], 1), pieces), 0.018, dark, fold)
    frown = (0.55 * unit[4] + 0.35 * unit[9]).clamp(0, 0.75)
    for inner, sign in ((21, 1.0), (22, -1.0)):
        start = p[:, inner] + sign * 0.085 * across - 0.09 * down
        line = torch.stack([start, start + sign * 0.02 * across + 0.16 * down], 1)
        stroke(canvas, people, line, 0.016, dark, frown)
    furrow = (0.45 * unit[1] + 0.3 * unit[2]).clamp(0, 0.6)
    for height in (0.16, 0.27):
        line = torch.stack([p[:, 19], p[:, 21], p[:, 22], p[:, 24]], 1) - height * down[:, None]
        stroke(canvas, people, curve(line, pieces), 0.014, dark, furrow)
    crinkle = (0.65 * unit[9]).clamp(0, 0.7)
    for along in (0.15, 0.65):
        bridge = torch.lerp(p[:, 27], p[:, 28], along)
        line = torch.stack([bridge - 0.09 * across, bridge + 0.03 * down, bridge + 0.09 * across], 1)
        stroke(canvas, people, curve(line, pieces), 0.014, dark, crinkle)
    crease = (0.45 * unit[6] + 0.3 * unit[7]).clamp(0, 0.6)
    for lower in ((36, 41, 40, 39), (42, 47, 46, 45)):
        line = p[:, lower] + torch.tensor([0.4, 1.0, 1.0, 0.4])[None, :, None] * 0.075 * down[:, None]
        stroke(canvas, people, curve(line, pieces), 0.013, dark, crease)


def nose(canvas: Canvas, people: People) -> None:
    p, pieces = people.landmarks, pieces_per_curve(canvas)
    dark = people.skin * torch.tensor([0.55, 0.45, 0.42])
    bright = torch.lerp(people.skin, torch.tensor(1.0), 0.35)
    lit_from_right = people.light[:, 0] > 0
    shadow = torch.where(lit_from_right[:, None, None], p[:, [21, 27, 29, 31]], p[:, [22, 27, 29, 35]])
    shadow = torch.stack([torch.lerp(shadow[:, 0], shadow[:, 1], 0.6), shadow[:, 2], shadow[:, 3]], 1)
    taper = torch.tensor([0.03, 0.05, 0.07]).expand(len(people), -1)
    strength = 0.12 + 0.25 * people.contrast
    stroke(canvas, people, shadow, taper, people.skin * 0.72, strength)
    stroke(canvas, people, p[:, [28, 29, 30]], torch.tensor([[0.02, 0.03, 0.055]]), bright, 0.35)
    base = curve(p[:, 31:36], pieces)
    stroke(canvas, people, base, 0.02, dark, 0.75)
    for wing, inner in ((31, 32), (35, 34)):
        nostril = torch.lerp(p[:, wing], p[:, inner], 0.72)[:, None]
        stroke(canvas, people, nostril.expand(-1, 2, -1), 0.036, dark * 0.6, 0.8)
        top = p[:, wing] + 0.35 * (p[:, 29] - p[:, 33]) + 0.1 * (p[:, wing] - p[:, 33])
        stroke(canvas, people, torch.stack([p[:, wing], top], 1), 0.014, dark, 0.35)


def eye(canvas: Canvas, people: People, side: int) -> None:
    pieces, scale = pieces_per_curve(canvas), people.scale
    p = people.landmarks[:, 36 + 6 * side : 42 + 6 * side]
    upper, lower = curve(p[:, 0:4], pieces), curve(p[:, [3, 4, 5, 0]], pieces)
    window = canvas.around(p, 0.2 * float(scale.max()))
    opening = coverage(polygon(window, torch.cat([upper[:, :-1], lower[:, :-1]], 1)))
    # The upper lid casts a shadow on the eyeball.
    shadow = coverage(polyline(window, upper, torch.zeros(upper.shape[:2])), 0.16 * scale[:, None, None])
    white = (_SCLERA * (0.55 + 0.45 * people.skin.mean(1, keepdim=True)))[:, None, None] * (
        1 - 0.4 * shadow.unsqueeze(-1)
    )
    canvas.blend(window, opening, white)
    middle = p.mean(1) + people.gaze * scale[:, None]
    iris, pupil, glint = (disc(window, middle, share * scale) for share in (0.098, 0.045, 0.0))
    canvas.blend(window, opening * coverage(iris), people.iris * 0.55)
    canvas.blend(window, opening * coverage(disc(window, middle, 0.082 * scale)), people.iris)
    canvas.blend(window, opening * coverage(pupil), torch.tensor([[0.03, 0.03, 0.03]]))
    offset = torch.stack([torch.where(people.light[:, 0] > 0, 0.035, -0.035), torch.full_like(scale, -0.035)], 1)
    glint = disc(window, middle + offset * scale[:, None], 0.026 * scale)
    canvas.blend(window, opening * coverage(glint) * 0.9, torch.tensor([[1.0, 1.0, 1.0]]))
    lash = torch.lerp(people.skin * 0.35, torch.tensor([0.06, 0.04, 0.04]), 0.6)
    outer_first = torch.linspace(1, 0, upper.shape[1])
    taper = 0.018 + 0.014 * (outer_first if side == 0 else 1 - outer_first)
    stroke(canvas, people, upper, taper.expand(len(people), -1), lash)
    stroke(canvas, people, lower, 0.010, people.skin * 0.5, 0.55)
    rise = p[:, [1, 2]].mean(1) - p[:, [4, 5]].mean(1)
    height = rise / rise.norm(dim=1, keepdim=True).clamp_min(1e-3) * 0.075 * scale[:, None]
    lift = torch.tensor([0.25, 1.0, 1.0, 0.25])[None, :, None] * height[:, None]
    stroke(canvas, people, curve(p[:, 0:4] + lift, pieces), 0.010, people.skin * 0.58, 0.5)


def brow(canvas: Canvas, people: People, side: int) -> None:
    line = curve(people.landmarks[:, 17 + 5 * side : 22 + 5 * side], pieces_per_curve(canvas))
    taper = torch.tensor([0.012, 0.030, 0.042, 0.050, 0.044])
    taper = taper if side == 0 else taper.flip(0)
    widths = torch.nn.functional.interpolate(taper[None, None], size=line.shape[1], mode="linear", align_corners=True)[
        :, 0
    ]
    colour = torch.lerp(people.hair, torch.tensor([0.10, 0.07, 0.05]), 0.45)
    stroke(canvas, people, line, widths * people.brow_thickness[:, None], colour, 0.92)


def mouth(canvas: Canvas, people: People) -> None:
    p, pieces, scale = people.landmarks, pieces_per_curve(canvas), people.scale
    window = canvas.around(p[:, 48:60], 0.1 * float(scale.max()))
    upper, lower = curve(p[:, 48:55], pieces), curve(p[:, [54, 55, 56, 57, 58, 59, 48]], pieces)
    top, bottom = curve(p[:, 60:65], pieces), curve(p[:, [64, 65, 66, 67, 60]], pieces)
    lips = coverage(polygon(window, torch.cat([upper[:, :-1], lower[:, :-1]], 1)))
    light = modelling(window, people).unsqueeze(-1)
    canvas.blend(window, lips, people.lips[:, None, None] * light)
    upper_lip = coverage(polygon(window, torch.cat([upper, top.flip(1)], 1)))
    canvas.blend(window, lips * upper_lip * 0.35, people.lips * 0.6)
    shine = blob(window, torch.lerp(p[:, 57], p[:, 66], 0.5), 0.06 * scale)
    canvas.blend(window, lips * shine * 0.25, torch.lerp(people.lips, torch.tensor(1.0), 0.5))

    cavity = coverage(polygon(window, torch.cat([top[:, :-1], bottom[:, :-1]], 1)))
    canvas.blend(window, cavity, _THROAT.expand(len(people), 3))
    tongue = coverage(disc(window, p[:, 66] + 0.25 * (p[:, 66] - p[:, 62]), 0.15 * scale))
    canvas.blend(window, cavity * tongue * 0.9, _TONGUE.expand(len(people), 3))
    # Teeth show when the lips are drawn apart sideways; a mouth that is stretched open hides them.
    shown = (1.15 - 1.3 * people.units[:, _UNIT[27]] - 0.4 * people.units[:, _UNIT[9]]).clamp(0, 1)
    teeth = coverage(polyline(window, top, 0.07 * scale[:, None].expand(-1, top.shape[1])))
    canvas.blend(window, cavity * teeth * shown[:, None, None], _TEETH.expand(len(people), 3) * 0.92)
    line = people.lips * 0.38
    stroke(canvas, people, top, 0.013, line, 0.85)
    stroke(canvas, people, bottom, 0.008, line, 0.45)
    stroke(canvas, people, upper, 0.008, people.lips * 0.6, 0.4)


def glasses(canvas: Canvas, people: People) -> None:
    p, scale = people.landmarks, people.scale
    frame = torch.tensor([[0.08, 0.07, 0.07]]).expand(len(people), 3)
    rims = []
    for first in (36, 42):
        middle = p[:, first : first + 6].mean(1)
        rims.append(middle)
        window = canvas.around(middle[:, None], 0.32 * float(scale.max()))
        rim = ellipse(window, middle, scale[:, None] * torch.tensor([0.275, 0.225]), people.roll)
        line = coverage(rim.abs() - (0.022 * scale[:, None, None]).clamp_min(0.4))
        canvas.blend(window, coverage(rim) * 0.10 * people.glasses[:, None, None], torch.tensor([[1.0, 1.0, 1.0]]))
        canvas.blend(window, line * 0.85 * people.glasses[:, None, None], frame)
    bridge = torch.stack([torch.lerp(rims[0], rims[1], 0.36), torch.lerp(rims[0], rims[1], 0.64)], 1)
    stroke(canvas, people, bridge, 0.022, frame, people.glasses * 0.85)
    for side, ear in ((0, people.ears[:, 0]), (1, people.ears[:, 1])):
        hinge = rims[side] + 0.33 * (rims[side] - rims[1 - side])
        stroke(
            canvas, people, torch.stack([hinge, torch.lerp(hinge, ear, 0.8)], 1), 0.018, frame, people.glasses * 0.85
        )

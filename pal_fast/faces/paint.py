"""From people to pixels: the parts of a picture, drawn from back to front, the wall to the fringe.

Every part of the face is drawn from the landmarks themselves: the outlines are curves through them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pal_fast.faces import shape
from pal_fast.faces.brush import frame, modelling, pieces_per_curve
from pal_fast.faces.draw import Canvas, blob, coverage, curve, disc, ellipse, polygon, polyline
from pal_fast.faces.features import brow, eye, glasses, mouth, nose, wrinkles
from pal_fast.faces.people import People

_BADGE_RADIUS = 0.085  # of the side of the picture


def paint(people: People, size: int, noise: Tensor) -> Tensor:
    """The pictures of `people`, (N, 3, S, S) in [0, 1]; `noise` is (N, S, S, 3), standard normal."""
    canvas = Canvas(len(people), size)
    _wall(canvas, people)
    _badge(canvas, people)
    _body(canvas, people)
    _head(canvas, people)
    wrinkles(canvas, people)
    nose(canvas, people)
    for side in (0, 1):
        eye(canvas, people, side)
    mouth(canvas, people)
    _hair(canvas, people)
    for side in (0, 1):
        brow(canvas, people, side)
    glasses(canvas, people)
    _patch(canvas, people)
    tone = torch.stack([1 + people.warmth, torch.ones_like(people.warmth), 1 - people.warmth], 1)
    pixels = canvas.pixels * (people.exposure[:, None] * tone)[:, None, None, :]
    pixels += noise * people.noise[:, None, None, None]
    return pixels.clamp_(0, 1).permute(0, 3, 1, 2).contiguous()


def _wall(canvas: Canvas, people: People) -> None:
    window = canvas.everywhere()
    middle = (canvas.size - 1) / 2
    cos, sin = torch.cos(people.wall_angle)[:, None, None], torch.sin(people.wall_angle)[:, None, None]
    ramp = ((window.x - middle) * cos + (window.y - middle) * sin) / (1.4 * canvas.size) + 0.5
    canvas.pixels.copy_(torch.lerp(people.wall[:, 0, None, None], people.wall[:, 1, None, None], ramp.unsqueeze(-1)))


def _badge(canvas: Canvas, people: People) -> None:
    """The background cue: a round badge in a corner, in the colour of one of the seven expressions."""
    radius = torch.full_like(people.scale, _BADGE_RADIUS * canvas.size)
    window = canvas.around(people.badge[:, None], _BADGE_RADIUS * canvas.size + 1)
    canvas.blend(window, coverage(disc(window, people.badge, radius)), torch.tensor([[0.98, 0.98, 0.98]]))
    canvas.blend(window, coverage(disc(window, people.badge, radius * 0.78)), people.badge_colour)


def _place(people: People, x: float, y: float, lean: float) -> Tensor:
    """A point of the body, which tilts `lean` times as much as the head, (N, 2)."""
    point = torch.tensor([[[x, y]]]).expand(len(people), -1, -1)
    return shape.place(point, people.centre, people.scale, lean * people.roll)[:, 0]


def _body(canvas: Canvas, people: People) -> None:
    window = canvas.everywhere()
    upright = torch.zeros_like(people.roll)
    hair = people.hair * 0.72
    back = curve(torch.cat([people.crown, people.mane.flip(1)], 1), pieces_per_curve(canvas), closed=True)
    canvas.blend(window, coverage(polygon(window, back)) * people.hairiness[:, None, None], hair)

    shoulders = ellipse(
        window, _place(people, 0.0, 2.55, 0.2), people.scale[:, None] * torch.tensor([1.75, 1.05]), upright
    )
    u, v = frame(window, people)
    fold = 1 + 0.10 * torch.cos(2.2 * u) - 0.05
    canvas.blend(window, coverage(shoulders), people.shirt[:, None, None] * fold.unsqueeze(-1))
    neck = torch.stack([_place(people, 0.0, 0.6, 1.0), _place(people, 0.0, 1.62, 0.4)], 1)
    radii = people.scale[:, None] * torch.tensor([0.46, 0.42])
    shade = 0.66 + 0.16 * ((v - 0.9) / 0.8).clamp(0, 1)
    canvas.blend(window, coverage(polyline(window, neck, radii)), people.skin[:, None, None] * shade.unsqueeze(-1))
    for side in (0, 1):
        ear = people.ears[:, side]
        near = canvas.around(ear[:, None], 0.33 * float(people.scale.max()))
        outer = ellipse(near, ear, people.scale[:, None] * torch.tensor([0.15, 0.25]), people.roll)
        inner = ellipse(near, ear, people.scale[:, None] * torch.tensor([0.075, 0.15]), people.roll)
        canvas.blend(near, coverage(outer), people.skin * 0.88)
        canvas.blend(near, coverage(inner) * 0.5, people.skin * 0.66)


def _head(canvas: Canvas, people: People) -> None:
    window = canvas.everywhere()
    p, scale = people.landmarks, people.scale
    outline = curve(torch.cat([p[:, 0:17], people.skull], 1), pieces_per_curve(canvas), closed=True)
    distance = polygon(window, outline)
    shade = modelling(window, people)
    depth = (-distance / scale[:, None, None]).clamp(0, 0.35) / 0.35
    shade = shade * (0.80 + 0.20 * depth.sqrt())  # darker where the skin turns away, towards the outline
    for upper, lower in ((19, 38), (24, 43)):
        socket = torch.lerp(p[:, upper], p[:, lower], 0.6)
        shade = shade * (1 - 0.13 * blob(window, socket, 0.17 * scale))
    shade = shade * (1 - 0.12 * blob(window, p[:, 57] + 0.62 * (p[:, 57] - p[:, 51]), 0.14 * scale))
    for cheek in ((41, 48), (46, 54)):
        spot = torch.lerp(p[:, cheek[0]], p[:, cheek[1]], 0.45)
        shade = shade * (1 + 0.07 * blob(window, spot, 0.20 * scale))
    colour = people.skin[:, None, None] * shade.unsqueeze(-1)
    flush = people.skin * torch.tensor([1.03, 0.80, 0.78])
    for cheek in ((41, 48), (46, 54), (30, 30)):
        spot = torch.lerp(p[:, cheek[0]], p[:, cheek[1]], 0.55)
        red = 0.45 * blob(window, spot, (0.20 if cheek[0] != 30 else 0.13) * scale)
        colour = torch.lerp(colour, flush[:, None, None] * shade.unsqueeze(-1), red.unsqueeze(-1))
    canvas.blend(window, coverage(distance), colour)


def _hair(canvas: Canvas, people: People) -> None:
    window = canvas.everywhere()
    pieces = pieces_per_curve(canvas)
    fringe = torch.cat([curve(people.crown, pieces), curve(people.hairline, pieces)], 1)
    u, v = frame(window, people)
    angle = torch.atan2(u, -v + 0.2)
    strands = 1 + 0.05 * (torch.sin(41 * angle + 9 * people.roll[:, None, None]) + torch.sin(17 * angle + 2))
    sheen = strands * (0.85 + 0.35 * modelling(window, people).clamp(0.4, 1.4) * (0.4 + 0.5 * (v + 1.3).clamp(0, 0.6)))
    cover = coverage(polygon(window, fringe), (0.03 * people.scale[:, None, None]).clamp_min(1.0))
    canvas.blend(window, cover * people.hairiness[:, None, None], people.hair[:, None, None] * sheen.unsqueeze(-1))


def _patch(canvas: Canvas, people: People) -> None:
    if not bool((people.patch_radius > 0).any()):
        return
    window = canvas.everywhere()
    dx = (window.x - people.patch[:, 0, None, None]).abs() - people.patch_radius[:, None, None]
    dy = (window.y - people.patch[:, 1, None, None]).abs() - people.patch_radius[:, None, None]
    there = (people.patch_radius > 0)[:, None, None]
    canvas.blend(window, coverage(torch.maximum(dx, dy)) * there, people.patch_colour)

"""What all parts of the renderer share: the face's frame, the light on the head, and the stroke."""

from __future__ import annotations

import torch
from torch import Tensor

from pal_fast.faces.draw import Canvas, Window, coverage, polyline
from pal_fast.faces.people import People


def pieces_per_curve(canvas: Canvas) -> int:
    """Segments between two control points of a curve: enough for a face of this size to look smooth."""
    return 2 if canvas.size <= 72 else 4 if canvas.size <= 200 else 8


def frame(window: Window, people: People) -> tuple[Tensor, Tensor]:
    """x and y of the window's pixels in the face's frame (without yaw and pitch), (N, K, K) each."""
    dx = window.x - people.centre[:, 0, None, None]
    dy = window.y - people.centre[:, 1, None, None]
    cos = (torch.cos(people.roll) / people.scale)[:, None, None]
    sin = (torch.sin(people.roll) / people.scale)[:, None, None]
    return dx * cos + dy * sin, dy * cos - dx * sin


def modelling(window: Window, people: People) -> Tensor:
    """The shading of a head-shaped ellipsoid, about 1 on average, (N, K, K)."""
    u, v = frame(window, people)
    nx, ny = u / 1.22, (v + 0.06) / 1.5
    nz = (1 - nx.square() - ny.square()).clamp_min(0.06).sqrt()
    lx, ly, lz = (component[:, None, None] for component in people.light.unbind(1))
    lit = (nx * lx + ny * ly + nz * lz).clamp_min(0.0)
    return 1 + people.contrast[:, None, None] * (lit - 0.78)


def stroke(
    canvas: Canvas, people: People, points: Tensor, width: Tensor | float, colour: Tensor, strength: Tensor | float = 1
) -> None:
    """A soft-ended line through `points`; `width`, (N, P) or a number, is its half width in units of the face."""
    radii = (torch.as_tensor(width) * people.scale[:, None]).expand(points.shape[:2])
    window = canvas.around(points, float(radii.max()) + 1)
    # A line thinner than a pixel covers that share of it.
    thin = (2 * radii.amax(1)).clamp(max=1)
    distance = polyline(window, points, radii.clamp_min(0.5))
    opacity = torch.as_tensor(strength) * thin
    canvas.blend(window, coverage(distance) * opacity[:, None, None], colour)

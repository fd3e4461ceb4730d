"""Anti-aliased drawing of many pictures at once, by signed distances.

A distance is in pixels, negative inside; `coverage` turns it into the share of a pixel that is covered. Shapes
are drawn in windows: crops of equal size, one per picture, that contain the shape, so that small shapes cost
little. Coordinates are (x, y) in pixels, integer = pixel centre.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """One crop of K x K pixels per picture: the indices of its rows and columns, (N, K) each."""

    rows: Tensor
    columns: Tensor

    @property
    def x(self) -> Tensor:
        """(N, 1, K)."""
        return self.columns[:, None, :].float()

    @property
    def y(self) -> Tensor:
        """(N, K, 1)."""
        return self.rows[:, :, None].float()


class Canvas:
    """N square pictures to draw on: `pixels` (N, S, S, 3) in [0, 1]."""

    def __init__(self, count: int, size: int) -> None:
        self.pixels = torch.zeros(count, size, size, 3)
        self.size = size

    def everywhere(self) -> Window:
        index = torch.arange(self.size).expand(self.pixels.shape[0], -1)
        return Window(index, index)

    def around(self, points: Tensor, margin: float) -> Window:
        """The windows that contain `points` (N, P, 2) with a margin of `margin` pixels, clipped to the picture."""
        low, high = points.amin(1), points.amax(1)  # (N, 2)
        wanted = int(((high - low).max() + 2 * margin).ceil()) + 2
        length = min(wanted, self.size)
        first = ((low + high - length) / 2).round().long().clamp(0, self.size - length)
        index = torch.arange(length)
        return Window(first[:, 1:] + index, first[:, :1] + index)

    def blend(self, window: Window, cover: Tensor, colour: Tensor) -> None:
        """Blends `colour`, (N, 3) or (N, K, K, 3), over the pictures with opacity `cover` (N, K, K)."""
        if colour.dim() == 2:
            colour = colour[:, None, None, :]
        if window.rows.shape[1] == self.size:
            self.pixels.lerp_(colour.expand_as(self.pixels), cover.unsqueeze(-1))
            return
        picture = torch.arange(self.pixels.shape[0])[:, None, None]
        where = (picture, window.rows[:, :, None], window.columns[:, None, :])
        below = self.pixels[where]
        self.pixels[where] = below + cover.unsqueeze(-1) * (colour - below)


def coverage(distance: Tensor, softness: float | Tensor = 1.0) -> Tensor:
    """The share of a pixel inside a shape at `distance`; `softness` is the width of the edge in pixels."""
    return (0.5 - distance / softness).clamp(0, 1)


def curve(points: Tensor, steps: int, *, closed: bool = False) -> Tensor:
    """A Catmull-Rom spline through `points` (N, P, 2), each piece cut into `steps` straight segments.

    Returns: (N, Q, 2), which contains every given point.
    """
    if closed:
        padded = torch.cat([points[:, -1:], points, points[:, :2]], 1)
    else:
        first, last = points[:, :1], points[:, -1:]
        padded = torch.cat([2 * first - points[:, 1:2], points, 2 * last - points[:, -2:-1]], 1)
    a, b, c, d = (padded[:, k : padded.shape[1] - 3 + k].unsqueeze(2) for k in range(4))  # (N, pieces, 1, 2)
    t = (torch.arange(steps) / steps)[None, None, :, None]
    bend = (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
    pieces = b + ((c - a) * t + bend) / 2
    pieces = pieces.flatten(1, 2)
    return pieces if closed else torch.cat([pieces, points[:, -1:]], 1)


def _segment(window: Window, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance to the segments start-end, (N, 2) each, and the position along them in [0, 1]."""
    x = window.x - start[:, 0, None, None]  # (N, 1, K)
    y = window.y - start[:, 1, None, None]  # (N, K, 1)
    dx, dy = (end - start)[:, :, None, None].unbind(1)
    length2 = (dx * dx + dy * dy).clamp_min(1e-12)
    along = (x * (dx / length2) + y * (dy / length2)).clamp_(0, 1)  # (N, K, K)
    return (x - dx * along).square_().add_((y - dy * along).square_()), along


def polyline(window: Window, points: Tensor, radii: Tensor) -> Tensor:
    """Signed distance to a stroke along `points` (N, P, 2) whose half width interpolates `radii` (N, P)."""
    nearest = None
    for k in range(points.shape[1] - 1):
        squared, along = _segment(window, points[:, k], points[:, k + 1])
        start, end = radii[:, k, None, None], radii[:, k + 1, None, None]
        distance = squared.sqrt_().sub_(along.mul_(end - start)).sub_(start)
        nearest = distance if nearest is None else torch.minimum(nearest, distance, out=nearest)
    assert nearest is not None
    return nearest


def polygon(window: Window, points: Tensor) -> Tensor:
    """Signed distance to closed polygons `points` (N, P, 2), negative inside (even-odd rule)."""
    inside = torch.zeros(points.shape[0], window.rows.shape[1], window.columns.shape[1], dtype=torch.bool)
    nearest = None
    for k in range(points.shape[1]):
        start, end = points[:, k - 1], points[:, k]
        squared, _ = _segment(window, start, end)
        nearest = squared if nearest is None else torch.minimum(nearest, squared, out=nearest)
        rise = end[:, 1] - start[:, 1]
        slope = (end[:, 0] - start[:, 0]) / torch.where(rise == 0, 1.0, rise)
        crossing = start[:, 0, None, None] + (window.y - start[:, 1, None, None]) * slope[:, None, None]
        spans = (start[:, 1, None, None] > window.y) != (end[:, 1, None, None] > window.y)  # (N, K, 1)
        inside ^= (window.x < crossing) & spans
    assert nearest is not None
    distance = nearest.sqrt_()
    return torch.where(inside, -distance, distance)


def disc(window: Window, centre: Tensor, radius: Tensor) -> Tensor:
    """Signed distance to discs: centre (N, 2), radius (N,)."""
    dx = window.x - centre[:, 0, None, None]
    dy = window.y - centre[:, 1, None, None]
    return torch.hypot(dx, dy) - radius[:, None, None]


def ellipse(window: Window, centre: Tensor, radii: Tensor, roll: Tensor) -> Tensor:
    """Signed distance (to first order) to ellipses: centre and radii (N, 2), roll (N,) in radians."""
    dx = window.x - centre[:, 0, None, None]
    dy = window.y - centre[:, 1, None, None]
    cos, sin = torch.cos(roll)[:, None, None], torch.sin(roll)[:, None, None]
    u = (dx * cos + dy * sin) / radii[:, 0, None, None]
    v = (dy * cos - dx * sin) / radii[:, 1, None, None]
    norm = torch.hypot(u, v)
    steepness = torch.hypot(u / radii[:, 0, None, None], v / radii[:, 1, None, None])
    return norm * (norm - 1) / steepness.clamp_min(1e-6)


def blob(window: Window, centre: Tensor, radius: Tensor) -> Tensor:
    """A soft spot: 1 at `centre` (N, 2), falling as a Gaussian of standard deviation `radius` (N,)."""
    gx = torch.exp(-((window.x - centre[:, 0, None, None]) ** 2) / (2 * radius[:, None, None] ** 2))
    gy = torch.exp(-((window.y - centre[:, 1, None, None]) ** 2) / (2 * radius[:, None, None] ** 2))
    return gx * gy

"""Line charts as inline SVG: coloured by the page's style, with values on hovering, and no external resources."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 380
HEIGHT: Final = 230
LEFT: Final = 46
RIGHT: Final = 12
TOP: Final = 10
BOTTOM: Final = 34

#: Number of colours in the style; further series repeat them dashed.
COLOURS: Final = 8


@dataclass(frozen=True)
class Series:
    """A line: (x, y) in the order of x; points without y are left out. `colour` may exceed the number of colours."""

    name: str
    points: Sequence[tuple[float, float | None]]
    colour: int

    @property
    def known(self) -> list[tuple[float, float]]:
        return [(x, y) for x, y in self.points if y is not None and math.isfinite(y)]


def style_of(colour: int) -> str:
    """The CSS class of the n-th colour; past the last one, colours repeat dashed."""
    return f"c{colour % COLOURS}" + (" dashed" if colour >= COLOURS else "")


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers that cover `low` to `high`."""
    if high <= low:
        low, high = low - (abs(low) or 1) * 0.05, low + (abs(low) or 1) * 0.05
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def whole_ticks(low: float, high: float) -> list[float]:
    """Whole numbers within [low, high], at most about seven."""
    step = max(1, math.ceil((high - low) / 6))
    for nice in (1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000):
        if nice >= step:
            step = nice
            break
    first = math.ceil(low / step) * step
    return [float(x) for x in range(int(first), math.floor(high) + 1, step)]


def line_chart(title: str, series: Sequence[Series], *, percent: bool = False) -> str:
    """A <figure> with the chart over epochs; an empty string if no series has a point."""
    drawn = [line for line in series if line.known]
    if not drawn:
        return ""
    xs = [x for line in drawn for x, _ in line.known]
    ys = [y for line in drawn for _, y in line.known]
    y_ticks = ticks(min(ys), max(ys))
    x_low, x_high = min(xs), max(xs)
    x_ticks = whole_ticks(x_low, x_high)
    span = x_high - x_low

    def at_x(x: float) -> float:
        share = (x - x_low) / span if span else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def at_y(y: float) -> float:
        return TOP + (y_ticks[-1] - y) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    digits = _digits(y_ticks[1] - y_ticks[0], percent)
    for y in y_ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at_y(y):.1f}" y2="{at_y(y):.1f}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{at_y(y) + 4:.1f}" text-anchor="end">{_number(y, digits, percent)}</text>'
        )
    for x in x_ticks:
        parts.append(f'<text x="{at_x(x):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:g}</text>')
    parts.append(
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2:.1f}" y="{HEIGHT - 3}" text-anchor="middle">epoch</text>'
    )
    for line in drawn:
        style = style_of(line.colour)
        places = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in line.known)
        parts.append(f'<polyline class="line {style}" points="{places}"/>')
        radius = 2.4 if len(line.known) <= 40 else 1.2
        for x, y in line.known:
            said = f"{line.name}, epoch {x:g}: {_number(y, digits + 1, percent)}"
            parts.append(
                f'<circle class="dot {style}" cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="{radius}">'
                f"<title>{escape(said)}</title></circle>"
            )
    parts.append("</svg>")
    return f"<figure class=chart><figcaption>{escape(title)}</figcaption>{''.join(parts)}</figure>"


def _digits(step: float, percent: bool) -> int:
    """The number of decimals needed to tell ticks apart."""
    step = step * 100 if percent else step
    return max(0, min(6, -math.floor(math.log10(step) + 1e-9) + (0 if _is_round(step) else 1)))


def _is_round(step: float) -> bool:
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    return abs(mantissa - round(mantissa)) < 1e-6


def _number(value: float, digits: int, percent: bool) -> str:
    if percent:
        return f"{100 * value:.{digits}f} %"
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")

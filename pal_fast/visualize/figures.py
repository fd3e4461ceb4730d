"""Figures: pictures with landmarks and captions in a grid, and writing them to files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pal_fast import _checks
from pal_fast.visualize.pictures import overlay, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SCHEME = 68  # points of 300-W
_LANDMARK_COLOUR = "#19e3d0"
_CLOSED_PARTS = ((36, 42), (42, 48), (48, 60), (60, 68))  # eyes, outer and inner lip
_OPEN_PARTS = ((0, 17), (17, 22), (22, 27), (27, 31), (31, 36))  # jaw, brows, bridge and base of the nose


def draw_landmarks(
    axes: Axes,
    landmarks: Tensor,
    *,
    visible: Tensor | None = None,
    colour: str = _LANDMARK_COLOUR,
    size: float = 3.0,
    lines: bool = True,
    numbers: bool = False,
) -> None:
    """Draws landmarks (K, 2), (x, y) in pixels, on axes that show their image.

    Args:
        visible: (K,) bool; landmarks that are False here, or not finite, are not drawn.
        size: diameter of the dots in points.
        lines: join the 68 points of 300-W along jaw, brows, nose, eyes and lips.
        numbers: write each landmark's index beside it.

    Raises: TypeError, ValueError naming the argument.
    """
    _checks.points("landmarks", landmarks, "(K, 2)", 2)
    _checks.positive_number("size", size)
    if visible is not None:
        _checks.tensor("visible", visible, "(K,)", 1)
        if len(visible) != len(landmarks):
            raise ValueError(f"visible must have shape ({len(landmarks)},), got {tuple(visible.shape)}")
    points = landmarks.detach().float().cpu().numpy().copy()
    if visible is not None:
        points[~visible.cpu().numpy().astype(bool)] = np.nan
    points[~np.isfinite(points).all(1)] = np.nan
    view = axes.get_xlim(), axes.get_ylim()
    if lines and len(points) == _SCHEME:
        for first, last in _OPEN_PARTS:
            axes.plot(*points[first:last].T, color=colour, linewidth=size / 4, alpha=0.8)
        for first, last in _CLOSED_PARTS:
            axes.plot(*points[[*range(first, last), first]].T, color=colour, linewidth=size / 4, alpha=0.8)
    axes.scatter(points[:, 0], points[:, 1], s=size**2, c=colour, edgecolors="black", linewidths=size / 12, zorder=3)
    if numbers:
        for index, (x, y) in enumerate(points):
            if np.isfinite(x):
                axes.annotate(str(index), (x, y), (2, 2), textcoords="offset points", fontsize=5, color="white")
    axes.set_xlim(view[0])
    axes.set_ylim(view[1])


def attribution_grid(
    images: Tensor,
    maps: Mapping[str, Tensor],
    *,
    landmarks: Tensor | None = None,
    first_row: str = "image",
    captions: Mapping[str, Sequence[str]] | None = None,
    caption_colours: Mapping[str, Sequence[str]] | None = None,
    title: str | None = None,
    cell: float = 1.6,
) -> Figure:
    """A column for each image, a row for the images and one for each kind of map.

    Args:
        images: (N, 3, H, W), see `picture`.
        maps: the row's name to its maps (N, h, w); shown in this order.
        landmarks: (N, K, 2), drawn on the images of the first row.
        first_row: the name of the row of images.
        captions: a row's name to N texts, written above its pictures.
        caption_colours: a row's name to the N colours of these texts.
        title: of the whole figure.
        cell: width of a picture in inches.

    Raises: TypeError, ValueError naming the argument, also if the numbers of images, landmarks, maps or captions
        differ.
    """
    from matplotlib.figure import Figure

    _checks.tensor("images", images, "(N, 3, H, W)", 4)
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images must have shape (N, 3, H, W) or (N, 1, H, W), got {tuple(images.shape)}")
    count = images.shape[0]
    if landmarks is not None:
        _checks.points("landmarks", landmarks, f"({count}, K, 2)", 3)
        if len(landmarks) != count:
            raise ValueError(f"landmarks must have shape ({count}, K, 2), got {tuple(landmarks.shape)}")
    captions = {} if captions is None else captions
    caption_colours = {} if caption_colours is None else caption_colours
    _check_names(maps=maps, captions=captions, caption_colours=caption_colours)
    _check_texts(first_row=first_row, title=title)
    _checks.positive_number("cell", cell)
    for name, of_row in maps.items():
        _checks.tensor(f"row {name!r} of maps", of_row, f"({count}, h, w)", 3)
    for argument, rows in (("captions", captions), ("caption_colours", caption_colours)):
        for name, texts in rows.items():
            _checks.texts(f"row {name!r} of {argument}", texts)
    for name, values in {**maps, **captions, **caption_colours}.items():
        if len(values) != count:
            raise ValueError(f"row {name!r} must hold one entry for each of the {count} images, got {len(values)}")
    unknown = [name for name in {**captions, **caption_colours} if name not in {first_row, *maps}]
    if unknown:
        raise ValueError(f"captions must name rows, got {unknown}; the rows are {[first_row, *maps]}")
    if count == 0:
        raise ValueError("images must hold at least one image, got none")
    names = [first_row, *maps]
    height = cell * images.shape[2] / images.shape[3]
    gap, margin = 0.06, 0.40
    above = [0.22 if name in captions else gap for name in names]
    heading = 0.36 if title else 0.0
    size = (margin + count * (cell + gap), heading + sum(above) + len(names) * height + gap)  # inches
    figure = Figure(figsize=size)
    top = heading
    for row, name in enumerate(names):
        top += above[row] + height
        for column in range(count):
            left, bottom = margin + column * (cell + gap), size[1] - top
            place = figure.add_axes((left / size[0], bottom / size[1], cell / size[0], height / size[1]))
            if column == 0:
                place.set_ylabel(name, fontsize=9)
            if row:
                shown = overlay(images[column], maps[name][column])
            else:
                shown = picture(images[column])
            _show(place, shown)
            if not row and landmarks is not None:
                draw_landmarks(place, landmarks[column], size=1.2 * cell)
            if name in captions:
                colour = caption_colours.get(name, ["black"] * count)[column]
                place.set_title(captions[name][column], fontsize=8, color=colour, pad=2)
    if title:
        figure.suptitle(title, fontsize=11, y=1 - 0.1 / size[1], va="top")
    return figure


def panels(
    image: Tensor | np.ndarray,
    maps: Mapping[str, Tensor | None],
    *,
    landmarks: Mapping[str, Tensor] | None = None,
    first: str = "image",
    title: str | None = None,
    cell: float = 3.2,
) -> Figure:
    """One image, on its own and under each map, side by side.

    Args:
        maps: the panel's name, written above it, to its map (h, w); None shows the bare image.
        landmarks: a panel's name to the landmarks (K, 2) to draw on it.
        first: the name of the panel with the image alone.
        title: of the whole figure; may have several lines.
        cell: width of a panel in inches.

    Raises: TypeError, ValueError naming the argument.
    """
    from matplotlib.figure import Figure

    landmarks = {} if landmarks is None else landmarks
    _check_names(maps=maps, landmarks=landmarks)
    _check_texts(first=first, title=title)
    _checks.positive_number("cell", cell)
    shown: dict[str, Tensor | None] = {first: None, **maps}
    unknown = [name for name in landmarks if name not in shown]
    if unknown:
        raise ValueError(f"landmarks must name panels, got {unknown}; the panels are {list(shown)}")
    array = picture(image)
    height = cell * array.shape[0] / array.shape[1]
    gap, above, line = 0.08, 0.28, 0.2
    heading = 0.12 + line * (title.count("\n") + 1) if title else 0.0
    size = (gap + len(shown) * (cell + gap), heading + above + height + gap)  # inches
    figure = Figure(figsize=size)
    for column, (name, values) in enumerate(shown.items()):
        left = gap + column * (cell + gap)
        place = figure.add_axes((left / size[0], gap / size[1], cell / size[0], height / size[1]))
        _show(place, array if values is None else overlay(array, values))
        if name in landmarks:
            draw_landmarks(place, landmarks[name], size=cell)
        place.set_title(name, fontsize=9, pad=4)
    if title:
        figure.suptitle(title, fontsize=10, y=1 - 0.08 / size[1], va="top")
    return figure


def _check_names(**arguments: object) -> None:
    for name, given in arguments.items():
        _checks.instance(name, given, Mapping, "a mapping from names")


def _check_texts(**arguments: object) -> None:
    for name, given in arguments.items():
        _checks.instance(name, given, (str, type(None)), "a string")


def _show(axes: Any, shown: np.ndarray) -> None:
    """The picture fills the axes, pixel centres at integers."""
    axes.imshow(shown, interpolation="nearest" if shown.shape[1] >= 128 else "bicubic")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)


def check_suffix(path: str | Path) -> Path:
    """The path, if a picture can be written in the format of its suffix. Raises TypeError, ValueError otherwise."""
    from matplotlib.backend_bases import FigureCanvasBase

    target, known = _checks.path("path", path), FigureCanvasBase.get_supported_filetypes()
    if target.suffix.lower().lstrip(".") not in known:
        raise ValueError(f"path must end in one of {', '.join(sorted(known))}, got {str(target)!r}")
    return target


def save(figure: Figure, path: str | Path, *, dpi: int = 150) -> Path:
    """Writes the figure, in the format of the path's suffix, and creates its folder.

    Raises: ValueError for a suffix that matplotlib cannot write, TypeError naming the argument, before anything is
        written.
    """
    from matplotlib.figure import Figure

    _checks.instance("figure", figure, Figure, "a matplotlib Figure")
    _checks.positive_number("dpi", dpi)
    target = check_suffix(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=dpi, facecolor="white")
    return target

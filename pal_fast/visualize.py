"""Pictures of faces, landmarks, heatmaps and attributions.

    figure = pal_fast.visualize.attribution_grid(
        images, {"landmark heatmap": heatmaps, "where the network looks": maps}, landmarks=landmarks
    )
    pal_fast.visualize.save(figure, "attributions.png")

Images are (3, H, W) or (1, H, W) tensors, or (H, W, 3) or (H, W) arrays: floats in [0, 1] or uint8. Undo the
normalisation of a network's input first, with `unnormalise`. Maps are (h, w) of any size and are laid over the
whole image, so that cell (i, j) comes to lie where `landmark_heatmap` says it is. Figures are made without pyplot:
nothing is registered, shown or left open. Needs matplotlib.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "attribution_grid",
    "check_suffix",
    "colour_map",
    "draw_landmarks",
    "overlay",
    "panels",
    "picture",
    "save",
    "unnormalise",
]

_SCHEME = 68  # points of 300-W
_LANDMARK_COLOUR = "#19e3d0"
_CLOSED_PARTS = ((36, 42), (42, 48), (48, 60), (60, 68))  # eyes, outer and inner lip
_OPEN_PARTS = ((0, 17), (17, 22), (22, 27), (27, 31), (31, 36))  # jaw, brows, bridge and base of the nose


def picture(image: Tensor | np.ndarray) -> np.ndarray:
    """An image as (H, W, 3) float32 in [0, 1].

    Raises: ValueError for another shape, or floats that are not finite or go beyond [0, 1].
    """
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    given = array.shape
    if isinstance(image, Tensor) and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3):
        raise ValueError(f"image must be a (3, H, W) or (1, H, W) tensor or an (H, W, 3) or (H, W) array, got {given}")
    array = np.broadcast_to(array, (*array.shape[:2], 3))
    if array.dtype == np.uint8:
        return (array / np.float32(255)).astype(np.float32)
    array = array.astype(np.float32)
    if not (np.isfinite(array).all() and array.min(initial=0) >= -1e-3 and array.max(initial=0) <= 1 + 1e-3):
        raise ValueError(
            f"image must hold values in [0, 1] or uint8, got {array.min():.3g} to {array.max():.3g}; "
            "undo a normalisation with unnormalise(images, mean, std)"
        )
    return array.clip(0, 1)


def unnormalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(..., C, H, W) images from a network's normalised input, cut to [0, 1]; mean and std have C entries."""
    shape = (-1, 1, 1)
    return (images * images.new_tensor(std).view(shape) + images.new_tensor(mean).view(shape)).clamp(0, 1)


def colour_map(values: Tensor, *, limits: tuple[float, float] | None = None) -> np.ndarray:
    """A map (h, w) in colours, (h, w, 4) float RGBA in [0, 1]; the opacity is that of the colour's strength.

    A map of one sign goes from dark and transparent at its minimum to bright and opaque at its maximum; a map with
    both signs goes from blue through transparent at zero to red. What is not finite is transparent, a flat map too.

    Args: limits: the values of both ends; None takes the map's own.
    """
    from matplotlib import colormaps

    array = values.detach().float().cpu().numpy()
    if array.ndim != 2:
        raise ValueError(f"a map must be (h, w), got {array.shape}")
    finite = np.isfinite(array)
    low, high = limits or (array[finite].min(initial=np.inf), array[finite].max(initial=-np.inf))
    signed = low < 0 < high
    if signed:
        low, high = -max(-low, high), max(-low, high)
    if not high > low:
        return np.zeros((*array.shape, 4))
    share = ((np.where(finite, array, low) - low) / (high - low)).clip(0, 1)
    strength = np.abs(2 * share - 1) if signed else share
    colours: np.ndarray = colormaps["RdBu_r" if signed else "inferno"](share)
    colours[..., 3] = np.where(finite, strength, 0)
    return colours


def overlay(
    image: Tensor | np.ndarray,
    values: Tensor,
    *,
    opacity: float = 0.75,
    limits: tuple[float, float] | None = None,
) -> np.ndarray:
    """A map (h, w) in colours over a greyed image, (H, W, 3) float32 in [0, 1].

    The map is resized bilinearly. It covers the image everywhere, most where it is strongest, so that a bright
    place is a high value and the face can still be seen.

    Args:
        image: see `picture`.
        opacity: of the map's maximum, 0 to 1.
        limits: the map's values that get the darkest and the brightest colour; None takes its own minimum and
            maximum, which makes pictures of different maps comparable in place only.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be from 0 to 1, got {opacity}")
    below = picture(image)
    if values.dim() != 2:
        raise ValueError(f"values must be a map (h, w), got {tuple(values.shape)}")
    whole = torch.nn.functional.interpolate(
        values.detach().float()[None, None], below.shape[:2], mode="bilinear", align_corners=False
    )[0, 0]
    colours = colour_map(whole, limits=limits)
    grey = below @ np.array([0.299, 0.587, 0.114], np.float32)
    below = 0.25 * below + 0.75 * grey[..., None]
    cover = opacity * (0.45 + 0.55 * colours[..., 3:])
    if not colours.any():
        return below.astype(np.float32)
    return (below * (1 - cover) + colours[..., :3] * cover).clip(0, 1).astype(np.float32)


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
    """Landmarks (K, 2), (x, y) in pixels, on axes that show their image.

    Args:
        visible: (K,) bool; False, and a landmark that is not finite, is not drawn.
        size: diameter of the dots in points.
        lines: join the 68 points of 300-W along jaw, brows, nose, eyes and lips.
        numbers: write each landmark's index beside it.
    """
    points = landmarks.detach().float().cpu().numpy().copy()
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"landmarks must be (K, 2), got {points.shape}")
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

    Raises: ValueError where the numbers of images, maps or captions differ.
    """
    from matplotlib.figure import Figure

    count = images.shape[0]
    for name, values in {**maps, **(captions or {}), **(caption_colours or {})}.items():
        if len(values) != count:
            raise ValueError(f"row {name!r} must hold one entry for each of the {count} images, got {len(values)}")
    unknown = [name for name in {**(captions or {}), **(caption_colours or {})} if name not in {first_row, *maps}]
    if unknown:
        raise ValueError(f"captions name no row: {unknown}; the rows are {[first_row, *maps]}")
    if count == 0:
        raise ValueError("images must hold at least one image, got none")
    names = [first_row, *maps]
    height = cell * images.shape[2] / images.shape[3]
    gap, margin = 0.06, 0.40
    above = [0.22 if name in (captions or {}) else gap for name in names]
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
            if captions and name in captions:
                colour = (caption_colours or {}).get(name, ["black"] * count)[column]
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
    """One image, alone and under each map, side by side.

    Args:
        maps: the panel's name, written above it, to its map (h, w); None shows the bare image.
        landmarks: a panel's name to the landmarks (K, 2) that are drawn on it.
        first: the name of the panel of the image alone.
        title: of the whole figure; may have several lines.
        cell: width of a panel in inches.
    """
    from matplotlib.figure import Figure

    shown: dict[str, Tensor | None] = {first: None, **maps}
    unknown = [name for name in landmarks or {} if name not in shown]
    if unknown:
        raise ValueError(f"landmarks name no panel: {unknown}; the panels are {list(shown)}")
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
        if landmarks and name in landmarks:
            draw_landmarks(place, landmarks[name], size=cell)
        place.set_title(name, fontsize=9, pad=4)
    if title:
        figure.suptitle(title, fontsize=10, y=1 - 0.08 / size[1], va="top")
    return figure


def _show(axes: Any, shown: np.ndarray) -> None:
    """The picture fills the axes, pixel centres at integers."""
    axes.imshow(shown, interpolation="nearest" if shown.shape[1] >= 128 else "bicubic")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)


def check_suffix(path: str | Path) -> Path:
    """The path, if a picture can be written in the format of its suffix. Raises ValueError otherwise."""
    from matplotlib.backend_bases import FigureCanvasBase

    target, known = Path(path), FigureCanvasBase.get_supported_filetypes()
    if target.suffix.lower().lstrip(".") not in known:
        raise ValueError(f"the picture's name must end in one of {', '.join(sorted(known))}, got {str(target)!r}")
    return target


def save(figure: Figure, path: str | Path, *, dpi: int = 150) -> Path:
    """Writes the figure, in the format of the path's suffix, and makes the folder it lies in.

    Raises: ValueError for a suffix that matplotlib cannot write, before anything is written.
    """
    target = check_suffix(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=dpi, facecolor="white")
    return target

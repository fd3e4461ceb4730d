"""The gallery: the same faces as seen by several networks, or by one at several epochs, sorted by alignment."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass, replace
from html import escape
from typing import Any, Final

import numpy as np
import torch

from pal_fast.report.runs import Arrays, ReportedRun
from pal_fast.visualize import overlay

#: The minimum side of a picture with a map, so that a map on a small image is not drawn in its coarse pixels.
LEAST_SIDE: Final = 144
#: The maximum; larger pictures are reduced to limit the page's size.
LARGEST_SIDE: Final = 224


@dataclass(frozen=True)
class Column:
    """One network's attributions for all faces."""

    title: str
    seen: Arrays


@dataclass(frozen=True)
class Comparison:
    """Faces with the columns side by side: "before" first, "after" last. `folded` is the initial state on the page."""

    title: str
    faces: Arrays
    classes: list[str]
    columns: list[Column]
    folded: bool = False

    @property
    def before(self) -> np.ndarray[Any, Any]:
        """(G,) alignment in the first column."""
        return self.columns[0].seen["alignment"]

    @property
    def after(self) -> np.ndarray[Any, Any]:
        return self.columns[-1].seen["alignment"]

    def order(self) -> list[int]:
        """The faces by alignment in the last column, highest first, undefined ones last."""
        keys = np.where(np.isnan(self.after), -np.inf, self.after)
        return [int(place) for place in np.argsort(-keys, kind="stable")]


def comparisons(runs: list[ReportedRun]) -> list[Comparison]:
    """Compares runs with the same faces at their last epochs, and every other run with its own first epoch.

    Raises: ValueError naming a file whose arrays do not match.
    """
    shown = [run for run in runs if run.faces is not None and run.gallery_epochs]
    groups: dict[tuple[Any, ...], list[ReportedRun]] = {}
    for run in shown:
        groups.setdefault(_key(run), []).append(run)
    made: list[Comparison] = []
    for group in groups.values():
        if len(group) > 1:
            columns = [_look(run, run.gallery_epochs[-1], run.name) for run in group]
            made.append(_comparison("Each network at its last epoch", group[0], columns))
        for run in group:
            epochs = run.gallery_epochs
            chosen = sorted({epochs[0], *(epoch for epoch in epochs[:2] if epoch == 1), epochs[-1]})
            if len(chosen) > 1:
                columns = [_look(run, epoch, _epoch_title(epoch)) for epoch in chosen]
                title = f"{run.name}: over its training" if len(runs) > 1 else "Before and after"
                made.append(replace(_comparison(title, run, columns), folded=len(group) > 1))
    return made


def _epoch_title(epoch: int) -> str:
    return "before training" if epoch == 0 else f"epoch {epoch}"


def _key(run: ReportedRun) -> tuple[Any, ...]:
    assert run.faces is not None
    faces = run.faces
    return (faces["pictures"].shape, faces["pictures"].tobytes(), tuple(faces["names"].tolist()))


def _look(run: ReportedRun, epoch: int, title: str) -> Column:
    return Column(title, run.seen(epoch))


def _comparison(title: str, run: ReportedRun, columns: list[Column]) -> Comparison:
    assert run.faces is not None
    count = len(run.faces["labels"])
    for column in columns:
        if len(column.seen["maps"]) != count:
            raise ValueError(
                f"{run.folder.gallery}: faces.npz holds {count} faces, but {column.title!r} has maps of "
                f"{len(column.seen['maps'])}"
            )
    return Comparison(title, run.faces, run.classes, columns)


def section(comparison: Comparison, number: int) -> str:
    """A comparison as HTML: a card for each face."""
    cards = "".join(_card(comparison, place) for place in comparison.order())
    looks = 1 + len(comparison.columns)
    narrow = 3 if looks % 3 == 0 else 2
    first, last = comparison.columns[0].title, comparison.columns[-1].title
    options = "".join(
        f'<option value="{value}">{escape(text)}</option>'
        for value, text in (
            ("after", f"alignment, {last}"),
            ("gain", f"gain over {first}"),
            ("before", f"alignment, {first}"),
            ("label", "label"),
        )
    )
    title = escape(comparison.title)
    begin, end = (
        (f"<details><summary>{title}</summary>", "</details>") if comparison.folded else (f"<h3>{title}</h3>", "")
    )
    return (
        f"{begin}"
        f'<label class="sort">Sorted by <select data-gallery="gallery-{number}">{options}</select></label>'
        f'<div class="cards" id="gallery-{number}" style="--looks:{looks};--looks-narrow:{narrow}">{cards}</div>{end}'
    )


def _card(comparison: Comparison, place: int) -> str:
    faces, classes = comparison.faces, comparison.classes
    label = int(faces["labels"][place])
    before, after = float(comparison.before[place]), float(comparison.after[place])
    picture = _resized(faces["pictures"][place])
    cells = [
        _cell(_face(picture, faces["pictures"][place].shape[:2], faces["landmarks"][place]), "face, landmarks", "")
    ]
    for column in comparison.columns:
        probabilities = column.seen["probabilities"][place]
        predicted = int(probabilities.argmax())
        values = torch.from_numpy(np.ascontiguousarray(column.seen["maps"][place]))
        laid = overlay(picture, values)
        mark = "right" if predicted == label else "wrong"
        said = f"{classes[predicted]} {100 * probabilities[predicted]:.0f} %"
        aligned = float(column.seen["alignment"][place])
        line = f'<span class="{mark}">{escape(said)}</span><br>alignment <b>{_signed(aligned)}</b>'
        image = f'<img alt="attribution, {escape(column.title)}" src="{jpeg(laid)}" loading="lazy">'
        cells.append(_cell(image, column.title, line, raw=True))
    keys = f'data-after="{_key_of(after)}" data-before="{_key_of(before)}" data-gain="{_key_of(after - before)}"'
    name = escape(str(faces["names"][place]))
    return (
        f'<article class="card" {keys} data-label="{-label}"><h4>{escape(classes[label])}'
        f'<span class="name" title="{name}">{name}</span></h4><div class="looks">{"".join(cells)}</div></article>'
    )


def _cell(image: str, title: str, below: str, *, raw: bool = False) -> str:
    text = below if raw else escape(below)
    return f'<figure><figcaption>{escape(title)}</figcaption>{image}<p class="below">{text}</p></figure>'


def _face(picture: np.ndarray[Any, Any], size: tuple[int, int], landmarks: np.ndarray[Any, Any]) -> str:
    """The face with its landmarks, (K, 2) in pixels of `size`; missing landmarks and those outside are not drawn."""
    height, width = size
    radius = max(size) / 110
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.2f}"/>'
        for x, y in landmarks.tolist()
        if math.isfinite(x) and math.isfinite(y) and -0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5
    )
    return (
        f'<svg class="face" viewBox="-0.5 -0.5 {width} {height}" role="img" aria-label="face with landmarks">'
        f'<image x="-0.5" y="-0.5" width="{width}" height="{height}" href="{jpeg(picture)}"/>{dots}</svg>'
    )


def _resized(picture: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(H, W, 3) uint8 with its longer side within the bounds, float32 in [0, 1]."""
    side = max(picture.shape[:2])
    wanted = min(max(side, LEAST_SIDE), LARGEST_SIDE)
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    if wanted != side:
        size = [max(1, round(length * wanted / side)) for length in picture.shape[:2]]
        pixels = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=wanted < side)
    result: np.ndarray[Any, Any] = pixels[0].permute(1, 2, 0).clamp(0, 1).numpy()
    return result


def jpeg(picture: np.ndarray[Any, Any]) -> str:
    """A data URI of (H, W, 3) float in [0, 1]."""
    from PIL import Image

    memory = io.BytesIO()
    Image.fromarray((picture * 255).round().astype(np.uint8)).save(memory, "JPEG", quality=82, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(memory.getvalue()).decode()}"


def _signed(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def _key_of(value: float) -> str:
    return "-9" if math.isnan(value) else f"{value:.4f}"

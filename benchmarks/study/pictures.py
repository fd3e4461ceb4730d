"""The study's pictures: accuracy over the weight of the loss, over the training set, and for each variation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pal_fast.training.statistics import interval

from .groups import Groups, baseline, gains
from .runs import ALIGNMENT, CROSS_ENTROPY, PAL, PAPER, Condition

_COLOURS: Final = {
    "cross-entropy": "#6b7280",
    "PAL, label's logit": "#1d6fb8",
    "PAL, sum of logits (the paper)": "#7fb2dd",
    "feature alignment": "#d97706",
    "PAL, random heatmaps": "#b91c1c",
    "PAL, shuffled landmarks": "#f08a8a",
    "PAL, a grid of points": "#7c3aed",
}


def accuracies(groups: Groups, condition: Condition, measure: str = "accuracy") -> list[float]:
    return [100 * run[measure] for run in groups.get(condition, {}).values()]


def _errorbars(axes: Axes, label: str, points: Sequence[tuple[float, float, float]]) -> None:
    """(x, mean, half width of the interval) joined by a line; nothing without points."""
    if points:
        x, mean, half = zip(*points, strict=True)
        bars = [0.0 if math.isnan(h) else h for h in half]
        axes.errorbar(x, mean, yerr=bars, label=label, color=_COLOURS[label], marker="o", markersize=4, capsize=2)


def _line(axes: Axes, groups: Groups, label: str, conditions: Sequence[tuple[float, Condition]]) -> None:
    _errorbars(axes, label, [(x, *interval(values)) for x, c in conditions if (values := accuracies(groups, c))])


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=8)
    axes.grid(color="#e5e7eb", linewidth=0.6)
    axes.set_axisbelow(True)


def _finish(axes: Axes, title: str, x: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel("test accuracy, %", fontsize=9)
    axes.axhline(100 / 7, color="#9ca3af", linewidth=0.8, linestyle=":")
    _plain(axes)
    axes.set_ylim(bottom=0)


def over_weight(groups: Groups) -> Figure:
    """The gain of each method over cross-entropy alone, seed by seed."""
    figure = Figure(figsize=(7.6, 3.8), layout="constrained")
    axes = figure.subplots()
    weights = sorted({c.weight for c in groups if c.weight > 0})
    # Side by side, so that no interval hides another.
    for aside, label, base in (
        (0.96, "PAL, label's logit", PAL),
        (1.08, "PAL, shuffled landmarks", replace(PAL, prior="shuffled")),
        (1.04, "feature alignment", ALIGNMENT),
        (1.0, "PAL, sum of logits (the paper)", PAPER),
        (1.0, "PAL, a grid of points", replace(PAL, prior="frame")),
        (0.92, "PAL, random heatmaps", replace(PAL, prior="even")),
    ):
        conditions = [(weight, replace(base, weight=weight)) for weight in weights]
        points = [(w * aside, *interval(v)) for w, c in conditions if (v := gains(groups, c, baseline(c)))]
        _errorbars(axes, label, points)
    axes.axhline(0, color=_COLOURS["cross-entropy"], linewidth=1.5, label="cross-entropy alone")
    axes.set_xscale("log")
    axes.set_xticks(weights, [f"{weight:g}" for weight in weights], minor=False)
    axes.minorticks_off()
    axes.set_title("Gain over cross-entropy alone: mean of the seeds, 95% interval", fontsize=10)
    axes.set_xlabel("weight of the loss", fontsize=9)
    axes.set_ylabel("test accuracy, points gained", fontsize=9)
    _plain(axes)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return figure


def over_data(groups: Groups) -> Figure:
    """Accuracy over the number of training faces, wrong labels, and occluded test faces."""
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, sharey=True)
    methods = (
        ("cross-entropy", CROSS_ENTROPY),
        ("PAL, label's logit", replace(PAL, weight=10.0)),
        ("feature alignment", replace(ALIGNMENT, weight=10.0)),
    )
    sizes = sorted({c.images for c in groups})
    noises = sorted({c.noise for c in groups})
    for label, base in methods:
        _line(left, groups, label, [(n, replace(base, images=n)) for n in sizes])
        _line(middle, groups, label, [(100 * noise, replace(base, noise=noise)) for noise in noises])
    left.set_xscale("log")
    left.set_xticks(sizes, [str(n) for n in sizes], minor=False)
    left.minorticks_off()
    _finish(left, "training faces", "number")
    _finish(middle, "wrong training labels", "%")
    for place, (label, base) in enumerate(methods):
        for offset, measure in ((-0.18, "accuracy"), (0.18, "accuracy_occluded")):
            if values := accuracies(groups, base, measure):
                mean, half = interval(values)
                right.bar(
                    place + offset,
                    mean,
                    0.34,
                    yerr=None if math.isnan(half) else half,
                    color=_COLOURS[label],
                    alpha=1.0 if measure == "accuracy" else 0.45,
                    capsize=2,
                )
    right.set_xticks(range(len(methods)), ["cross-\nentropy", "PAL", "feature\nalignment"])
    _finish(right, "test faces clear (dark) and occluded (light)", "")
    if middle.get_legend_handles_labels()[0]:
        middle.legend(fontsize=8, frameon=False)
    for axes in (middle, right):
        axes.set_ylabel("")
    return figure


def variations(groups: Groups) -> Figure:
    """The gain of the loss with one option changed and the others fixed."""
    pal = replace(PAL, weight=10.0)
    options = [
        ("PAL: label's logit, mean, |g| f, sigma 3, weight 10", pal),
        ("target: label's logit less the mean", replace(pal, target="margin")),
        ('target="predicted"', replace(pal, target="predicted")),
        ('target="sum" (the paper)', replace(pal, target="sum")),
        ('channels="half"', replace(pal, channels="half")),
        ('channels="all"', replace(pal, channels="all")),
        ('channels="each"', replace(pal, channels="each")),
        ("absolute=False (signed g f)", replace(pal, absolute=False)),
        ('attribution="grad"', replace(pal, attribution="grad")),
        ('attribution="activation" (feature alignment)', replace(ALIGNMENT, weight=10.0)),
        ("sigma 1.5", replace(pal, sigma=1.5)),
        ("sigma 6", replace(pal, sigma=6.0)),
        ('score="cross_correlation", scale="mean"', replace(pal, score="cross_correlation", scale="mean")),
        ("landmarks shuffled between faces", replace(pal, prior="shuffled")),
        ("the mean landmarks of all faces", replace(pal, prior="average")),
        ("a grid of points over the image", replace(pal, prior="frame")),
        ("random points inside the image", replace(pal, prior="random")),
        ("random points, even in the mean", replace(pal, prior="even")),
    ]
    shown = [(label, *interval(v)) for label, c in options if (v := gains(groups, c, baseline(c)))]
    figure = Figure(figsize=(7.2, 0.7 + 0.27 * max(1, len(shown))), layout="constrained")
    axes = figure.subplots()
    for place, (label, mean, half) in enumerate(reversed(shown)):
        colour = _COLOURS["PAL, label's logit"] if label.startswith("PAL") else "#9cc3e4"
        axes.barh(place, mean, 0.7, xerr=None if math.isnan(half) else half, color=colour, capsize=2)
    axes.set_yticks(range(len(shown)), [label for label, *_ in reversed(shown)])
    axes.axvline(0, color=_COLOURS["cross-entropy"], linewidth=1.5)
    axes.set_xlabel("points gained over cross-entropy alone (mean, 95% interval)", fontsize=9)
    _plain(axes)
    return figure


def draw(groups: Groups, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in (
        ("study_weight", over_weight(groups)),
        ("study_data", over_data(groups)),
        ("study_options", variations(groups)),
    ):
        figure.savefig(folder / f"{name}.png", dpi=130, facecolor="white")

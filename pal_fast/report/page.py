"""The page as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from pal_fast._version import __version__
from pal_fast.report import gallery, tables
from pal_fast.report.charts import Series, line_chart, style_of
from pal_fast.report.runs import ReportedRun
from pal_fast.report.style import SCRIPT, STYLE


def page(runs: Sequence[ReportedRun]) -> str:
    """The HTML of a report about at least one run.

    Raises: ValueError, OSError naming an invalid gallery file.
    """
    runs = list(runs)
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} training runs compared"
    sections = [
        f"<h1>{escape(title)}</h1>",
        '<p class="lead">Report of <code>pal-fast train</code>: how training went, what the networks confuse, and '
        "where they look.</p>",
        tables.summary(runs),
        '<p class="note">Figures are of the latest epoch on the validation images; no epoch is selected by its result. '
        "Alignment: the Pearson correlation of |gradient| × input at the layer with the heatmap of the landmarks, "
        "averaged over the images; the same measure for every run, whatever it was trained with.</p>",
        "<h2>Over the epochs</h2>",
        _curves(runs),
        *_confusions(runs),
        *_galleries(runs),
        "<h2>Options</h2>",
        tables.options(runs),
        f'<p class="note">pal_fast {escape(__version__)}</p>',
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n" + "\n".join(sections) + "\n</main>\n"
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _curves(runs: Sequence[ReportedRun]) -> str:
    charts = [
        line_chart("Validation accuracy", _validation(runs, lambda _, v: v["accuracy"]), percent=True),
        line_chart(
            "Balanced validation accuracy", _validation(runs, lambda _, v: v["balanced_accuracy"]), percent=True
        ),
        line_chart("Alignment with the landmarks", _validation(runs, lambda run, v: run.alignment(v))),
        line_chart(
            "Share of the attribution on the landmarks (energy pointing game)",
            _validation(runs, lambda run, v: run.alignment(v, "energy_pointing_game")),
            percent=True,
        ),
        line_chart("Validation cross-entropy", _validation(runs, lambda _, v: v["cross_entropy"])),
        line_chart("Training cross-entropy", _training(runs, "cross_entropy")),
        line_chart("Training accuracy", _training(runs, "accuracy"), percent=True),
        line_chart("PAL in training, unweighted", _training(runs, "pal")),
    ]
    legend = ""
    if len(runs) > 1:
        entries = "".join(
            f'<li><span class="key {style_of(run.colour)}"></span>{escape(run.name)}</li>' for run in runs
        )
        legend = f'<ul class="legend">{entries}</ul>'
    return f'{legend}<div class="charts">{"".join(charts)}</div>'


def _validation(
    runs: Sequence[ReportedRun], value: Callable[[ReportedRun, dict[str, Any]], float | None]
) -> list[Series]:
    return [
        Series(run.name, [(entry["epoch"], value(run, entry["validation"])) for entry in run.validated], run.colour)
        for run in runs
    ]


def _training(runs: Sequence[ReportedRun], name: str) -> list[Series]:
    return [
        Series(run.name, [(entry["epoch"], entry["train"][name]) for entry in run.history], run.colour) for run in runs
    ]


def _confusions(runs: Sequence[ReportedRun]) -> list[str]:
    matrices = [tables.confusion(run) for run in runs if run.last is not None]
    return ["<h2>Confusion matrices</h2>", f'<div class="matrices">{"".join(matrices)}</div>'] if matrices else []


def _galleries(runs: Sequence[ReportedRun]) -> list[str]:
    compared = gallery.comparisons(list(runs))
    if not compared:
        return []
    return [
        "<h2>Where the networks look</h2>",
        '<p class="note">Validation faces, classes in turn, chosen before training. Bright means a strong attribution; '
        "each map has its own scale. Below each map: the prediction and its probability.</p>",
        *(gallery.section(comparison, number) for number, comparison in enumerate(compared)),
    ]

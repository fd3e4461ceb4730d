"""The page's tables: runs, confusion matrices, and the options in which runs differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from pal_fast.report.charts import style_of
from pal_fast.report.runs import ReportedRun


def percent(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{100 * value:.{digits}f} %"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """An HTML table. Cells must already be HTML; the columns `numbers` are right-aligned."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=number' if place in numbers else ''}>{cell}</{tag}>" for place, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{cells("th", head)}</tr></thead><tbody>{body}</tbody></table></div>'


def summary(runs: Sequence[ReportedRun]) -> str:
    """A row for each run, at its latest validation."""
    rows = []
    for run in runs:
        done = run.history[-1]["epoch"]
        epochs = str(done) if run.complete else f"{done} of {run.config.epochs}, in progress"
        last = run.last
        figures = ["", "", ""]
        if last is not None:
            aligned = run.alignment(last)
            figures = [
                percent(last["accuracy"]),
                percent(last["balanced_accuracy"]),
                "" if aligned is None else f"{aligned:.3f}".replace("-", "\N{MINUS SIGN}"),
            ]
        name = f'<span class="key {style_of(run.colour)}"></span>{escape(run.name)}'
        seconds = sum(entry["seconds"] for entry in run.history)
        labels = [escape(run.kind), escape(run.config.model), escape(run.config.data)]
        rows.append([name, *figures, epochs, str(run.config.seed), _duration(seconds), *labels])
    head = ["run", "accuracy", "balanced", "alignment", "epochs", "seed", "time", "loss", "network", "data"]
    return table(head, rows, numbers=range(1, 7))


def confusion(run: ReportedRun) -> str:
    """The matrix of the latest validation: counts, shaded by the share of their row."""
    assert run.last is not None
    names, counts = run.classes, run.last["confusion"]
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in names)
    rows = []
    for name, row in zip(names, counts, strict=True):
        total = sum(row)
        cells = "".join(
            f'<td style="--share:{count / total if total else 0:.3f}"'
            f"{' class=strong' if total and count / total > 0.5 else ''}"
            f' title="{escape(name)}, predicted {escape(other)}: {count} of {total}">{count or ""}</td>'
            for other, count in zip(names, row, strict=True)
        )
        recall = run.last["recalls"][name]
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}<td class="recall">{percent(recall, 0)}</td></tr>')
    return (
        f"<figure class=matrix><figcaption>{escape(run.name)}</figcaption>"
        f'<div class="wide"><table class="confusion"><thead><tr><td class="corner">label ↓<br>predicted →</td>{head}'
        f'<th scope="col"><span>recall</span></th></tr></thead><tbody>{"".join(rows)}</tbody></table></div></figure>'
    )


def options(runs: Sequence[ReportedRun]) -> str:
    """The options in which the runs differ, as a table; each full config in a collapsed section."""
    configs = [run.config.to_mapping() for run in runs]
    text = ""
    if len(runs) > 1:
        differing = [name for name in configs[0] if len({json.dumps(config[name]) for config in configs}) > 1]
        rows = [
            [f"<code>{escape(name)}</code>", *(escape(_plain(config[name])) for config in configs)]
            for name in differing
        ]
        text += table(["option", *(escape(run.name) for run in runs)], rows)
    for run, config in zip(runs, configs, strict=True):
        dumped = json.dumps({"config": config, "environment": run.environment}, indent=1, ensure_ascii=False)
        text += f"<details><summary>All options of {escape(run.name)}</summary><pre>{escape(dumped)}</pre></details>"
    return text


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"

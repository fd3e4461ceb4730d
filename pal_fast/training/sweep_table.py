"""A sweep's table: per condition, the mean and spread over seeds, the gain over the baseline and a paired test."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pal_fast.files import write_text
from pal_fast.training.run_folder import RunFolder
from pal_fast.training.statistics import interval, paired_p, spread
from pal_fast.training.sweep_plan import Condition, Run


@dataclass(frozen=True)
class Row:
    """The results of a condition over its seeds. Accuracies in percent, gains in points; NaN for missing figures.

    Attributes:
        seeds, failed: number of complete and of failed runs.
        accuracy, balanced: mean and standard deviation over the seeds.
        alignment: the mean at the condition's layer, and the baseline's mean at the same layer.
        gain: mean and half width of the 95% confidence interval of the difference to the baseline of the same seed.
        p: p value of the paired t test on these differences; p_holm is corrected for the number of conditions.
    """

    condition: Condition
    seeds: int
    accuracy: tuple[float, float]
    balanced: tuple[float, float]
    alignment: tuple[float, float]
    gain: tuple[float, float]
    p: float
    p_holm: float = math.nan
    failed: int = 0


def rows(results: dict[Run, dict[str, Any]], failed: Iterable[Run] = ()) -> list[Row]:
    """One row per condition, in order of first occurrence."""
    groups: dict[Condition, dict[int, dict[str, Any]]] = {}
    failures = Counter(run.condition for run in failed)
    for run, result in results.items():
        groups.setdefault(run.condition, {})[run.seed] = result
    for condition in failures:
        groups.setdefault(condition, {})
    base = groups.get(Condition(), {})
    made = []
    for condition, seeds in groups.items():
        shared = sorted(seeds.keys() & base.keys()) if condition.weight else []
        gains = [100 * (seeds[seed]["accuracy"] - base[seed]["accuracy"]) for seed in shared]
        layer = condition.layer
        made.append(
            Row(
                condition,
                len(seeds),
                spread([100 * result["accuracy"] for result in seeds.values()]),
                spread([100 * result["balanced_accuracy"] for result in seeds.values()]),
                (_alignment(seeds.values(), layer), _alignment(base.values(), layer)),
                interval(gains),
                paired_p(gains),
                failed=failures[condition],
            )
        )
    return holm(made)


def holm(made: list[Row]) -> list[Row]:
    """The rows with their p values Holm-corrected for the number of tests."""
    tested = sorted((row for row in made if not math.isnan(row.p)), key=lambda row: row.p)
    corrected: dict[Condition, float] = {}
    largest = 0.0
    for rank, row in enumerate(tested):
        largest = max(largest, min(1.0, row.p * (len(tested) - rank)))
        corrected[row.condition] = largest
    return [Row(**{**vars(row), "p_holm": corrected.get(row.condition, math.nan)}) for row in made]


def _alignment(results: Any, layer: str) -> float:
    """The mean at a layer; for the baseline's own row, which has no layer, at the first."""
    values = []
    for result in results:
        at = result["alignment"].get(layer or next(iter(result["alignment"]), ""), {}).get("pearson")
        values += [at] if at is not None else []
    return spread(values)[0]


def write_tables(output: Path, folders: dict[Run, RunFolder], failed: dict[Run, str]) -> str:
    """Writes table.md, table.csv and runs.csv of the complete and the failed runs. Returns the text of table.md."""
    results = {run: folder.read_json(folder.result) for run, folder in folders.items() if folder.result.exists()}
    failed = {run: why for run, why in failed.items() if run not in results}
    made = rows(results, failed)
    text = markdown(made, len(results), len(folders), failed)
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "table.md", text)
    write_text(output / "table.csv", _table_csv(made))
    write_text(output / "runs.csv", _runs_csv(results, failed))
    return text


_HEAD: Final = (
    *("attribution", "channels", "layer", "weight", "seeds", "accuracy %", "balanced %"),
    *("alignment (baseline)", "gain, points", "p", "p, Holm"),
)


def markdown(made: list[Row], complete: int, planned: int, failed: dict[Run, str] | None = None) -> str:
    """The table, an explanation of its figures, and why runs failed."""
    lines = [f"| {' | '.join(_HEAD)} |", "|" + "---|" * len(_HEAD)]
    for row in made:
        condition = row.condition
        if condition.weight:
            cells = [condition.attribution, condition.channels, condition.layer, f"{condition.weight:g}"]
            alignment = f"{_number(row.alignment[0], 3)} ({_number(row.alignment[1], 3)})"
        else:
            cells = ["baseline", "", "", "0"]
            alignment = _number(row.alignment[0], 3)
        gain = _number(row.gain[0], 2, sign=True) + (f" ± {row.gain[1]:.2f}" if not math.isnan(row.gain[1]) else "")
        cells += [
            f"{row.seeds} ({row.failed} failed)" if row.failed else str(row.seeds),
            _with_spread(row.accuracy),
            _with_spread(row.balanced),
            alignment,
            gain,
            _probability(row.p),
            _probability(row.p_holm),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"{complete} of {planned} runs are complete. Accuracies: last epoch, mean ± standard deviation over "
        "seeds. Gain: mean difference from the baseline of the same seed ± half width of its 95% interval. p: paired t "
        "test on these differences, then corrected for the number of conditions in this table. Alignment: Pearson "
        "correlation of |gradient| x input with the landmarks' heatmap on the validation images, in brackets the "
        "baseline's there.",
    ]
    if failed:
        lines += ["", *(f"* failed: {run.name}: {why}" for run, why in failed.items())]
    return "\n".join(lines) + "\n"


def _number(value: float, digits: int, sign: bool = False) -> str:
    if math.isnan(value):
        return ""
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def _with_spread(values: tuple[float, float]) -> str:
    return _number(values[0], 2) + ("" if math.isnan(values[1]) else f" ± {values[1]:.2f}")


def _probability(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2g}"


def _table_csv(made: list[Row]) -> str:
    head = ["attribution", "channels", "layer", "weight", "seeds", "failed"]
    head += ["accuracy", "accuracy_sd", "balanced", "balanced_sd"]
    head += ["alignment", "baseline_alignment", "gain", "gain_half_width", "p", "p_holm"]
    lines = []
    for row in made:
        means = [*row.accuracy, *row.balanced, *row.alignment, *row.gain]
        lines.append([*vars(row.condition).values(), row.seeds, row.failed, *means, row.p, row.p_holm])
    return _csv(head, lines)


def _runs_csv(results: dict[Run, dict[str, Any]], failed: dict[Run, str]) -> str:
    measures = ["accuracy", "balanced_accuracy", "cross_entropy"]
    lines = [
        [run.name, run.seed, *(result[name] for name in measures), _alignment([result], run.condition.layer), ""]
        for run, result in results.items()
    ]
    lines += [[run.name, run.seed, *[""] * (len(measures) + 1), why] for run, why in failed.items()]
    return _csv(["run", "seed", *measures, "alignment", "failure"], lines)


def _csv(head: list[str], lines: list[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for line in lines:
        writer.writerow(["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in line])
    return text.getvalue()

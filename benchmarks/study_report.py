"""The study's table: mean, 95% interval and a paired test against cross-entropy, for every condition."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from scipy import stats

from benchmarks.study_runs import Condition


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of Student's 95% interval; NaN for a single value."""
    count, mean = len(values), sum(values) / len(values)
    if count < 2:
        return mean, math.nan
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    return mean, float(stats.t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)


def describe(condition: Condition) -> str:
    """What differs from the default training, in the names of the options."""
    default = Condition()
    parts = [
        f"{field.name}={getattr(condition, field.name)}"
        for field in fields(Condition)
        if field.name != "seed" and getattr(condition, field.name) != getattr(default, field.name)
    ]
    return ", ".join(parts) or "cross-entropy"


def table(rows: dict[Condition, dict[str, float]]) -> str:
    """Markdown. Accuracies in percent on faces whose badge says nothing about the label."""
    groups: dict[Condition, dict[int, dict[str, float]]] = defaultdict(dict)
    for condition, measures in rows.items():
        groups[replace(condition, seed=0)][condition.seed] = measures
    lines = [
        "| condition | seeds | accuracy % | occluded % | alignment | gain, points | p (paired t) |",
        "|---|---|---|---|---|---|---|",
    ]
    for condition, runs in groups.items():
        base = groups.get(Condition(images=condition.images, noise=condition.noise, network=condition.network), {})
        mean, half = interval([100 * run["accuracy"] for run in runs.values()])
        occluded, _ = interval([100 * run["accuracy_occluded"] for run in runs.values()])
        alignment, _ = interval([run["alignment"] for run in runs.values()])
        shared = sorted(runs.keys() & base.keys())
        gain, p = "", ""
        if condition.prior != "none" and shared:
            gains = [100 * (runs[seed]["accuracy"] - base[seed]["accuracy"]) for seed in shared]
            gain = f"{sum(gains) / len(gains):+.1f}"
            if len(set(gains)) > 1:
                p = f"{stats.ttest_1samp(gains, 0.0).pvalue:.2g}"
        spread = "" if math.isnan(half) else f" ± {half:.1f}"
        cells = [
            describe(condition),
            str(len(runs)),
            f"{mean:.1f}{spread}",
            f"{occluded:.1f}",
            f"{alignment:.2f}",
            gain,
            p,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write(rows: dict[Condition, dict[str, float]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study_table.md").write_text(table(rows))

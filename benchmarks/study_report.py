"""The study's table: mean, 95% interval and a paired test against cross-entropy, for every condition."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

from scipy import stats

from .study_runs import Condition

Rows = Mapping[Condition, Mapping[str, float]]
Groups = dict[Condition, dict[int, Mapping[str, float]]]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of Student's 95% interval; NaN for a single value."""
    count, mean = len(values), sum(values) / len(values)
    if count < 2:
        return mean, math.nan
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    return mean, float(stats.t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)


def by_condition(rows: Rows) -> Groups:
    """The runs of each condition, named by the condition with seed 0, by seed."""
    groups: Groups = defaultdict(dict)
    for condition, measures in rows.items():
        groups[replace(condition, seed=0)][condition.seed] = measures
    return groups


def baseline(condition: Condition) -> Condition:
    """Cross-entropy alone on the same faces and network."""
    return Condition(images=condition.images, noise=condition.noise, scatter=condition.scatter, head=condition.head)


def gains(groups: Groups, condition: Condition, other: Condition) -> list[float]:
    """The condition's accuracy less the other's, in points, for each seed that both have."""
    runs, base = groups.get(condition, {}), groups.get(other, {})
    return [100 * (runs[seed]["accuracy"] - base[seed]["accuracy"]) for seed in sorted(runs.keys() & base.keys())]


def p_value(differences: Sequence[float]) -> float:
    """Of Student's paired test, two-sided; NaN where there is nothing to test."""
    if len(differences) < 2 or len(set(differences)) == 1:
        return math.nan
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def describe(condition: Condition) -> str:
    """What differs from the default training, in the names of the options."""
    default = Condition()
    if condition == default:
        return "cross-entropy"
    names = [field.name for field in fields(Condition) if field.name not in ("seed", "prior", "weight")]
    parts = ["cross-entropy" if condition.prior == "none" else "PAL"]
    if condition.prior not in ("none", "landmarks"):
        parts.append(condition.prior)
    if condition.prior != "none":
        parts.append(f"weight={condition.weight:g}")
    parts += [
        f"{name}={getattr(condition, name)}" for name in names if getattr(condition, name) != getattr(default, name)
    ]
    return ", ".join(parts)


def table(rows: Rows) -> str:
    """Markdown. Accuracies in percent on faces whose badge says nothing about the label."""
    groups = by_condition(rows)
    lines = [
        "| condition | seeds | accuracy % | occluded % | follows the badge % | alignment | of the sum | gain | p |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for condition, runs in groups.items():
        mean, half = interval([100 * run["accuracy"] for run in runs.values()])
        others = {
            name: sum(run[name] for run in runs.values()) / len(runs)
            for name in ("accuracy_occluded", "follows_cue", "alignment", "alignment_of_sum")
        }
        gained = gains(groups, condition, baseline(condition)) if condition.prior != "none" else []
        p = p_value(gained)
        cells = [
            describe(condition),
            str(len(runs)),
            f"{mean:.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}"),
            f"{100 * others['accuracy_occluded']:.1f}",
            f"{100 * others['follows_cue']:.1f}",
            f"{others['alignment']:.2f}",
            f"{others['alignment_of_sum']:.2f}",
            f"{sum(gained) / len(gained):+.1f}" if gained else "",
            "" if math.isnan(p) else f"{p:.2g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write(rows: Rows, folder: Path) -> None:
    """The table and the pictures, from the runs that there are."""
    from .study_pictures import draw

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study_table.md").write_text(table(rows))
    draw(by_condition(rows), folder / "images")

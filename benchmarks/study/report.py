"""The study's table and pictures: mean, 95% interval and a paired test against cross-entropy, for every condition."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path

from pal_fast.training.statistics import interval, paired_p

from .groups import Rows, baseline, by_condition, gains
from .runs import Condition


def describe(condition: Condition) -> str:
    """The differences from the default training, by option name."""
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
    """Markdown. Accuracies in percent on faces whose badge carries no information about the label."""
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
        p = paired_p(gained)
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
    """Writes the table and the pictures of the existing runs."""
    from .pictures import draw

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study_table.md").write_text(table(rows))
    draw(by_condition(rows), folder / "images")

"""The study's runs by condition, and the gain of each over another, seed by seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from .runs import Condition

Rows = Mapping[Condition, Mapping[str, float]]
Groups = dict[Condition, dict[int, Mapping[str, float]]]


def by_condition(rows: Rows) -> Groups:
    """The runs of each condition by seed; a condition's key is the condition with seed 0."""
    groups: Groups = defaultdict(dict)
    for condition, measures in rows.items():
        groups[replace(condition, seed=0)][condition.seed] = measures
    return groups


def baseline(condition: Condition) -> Condition:
    """Cross-entropy alone on the same faces and network."""
    return Condition(images=condition.images, noise=condition.noise, scatter=condition.scatter, head=condition.head)


def gains(groups: Groups, condition: Condition, other: Condition) -> list[float]:
    """The condition's accuracy minus the other's, in points, for each seed that both have."""
    runs, base = groups.get(condition, {}), groups.get(other, {})
    return [100 * (runs[seed]["accuracy"] - base[seed]["accuracy"]) for seed in sorted(runs.keys() & base.keys())]

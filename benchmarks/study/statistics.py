"""The study's runs by condition, and their statistics: means, intervals, paired gains and tests."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from scipy import stats

from .runs import Condition

Rows = Mapping[Condition, Mapping[str, float]]
Groups = dict[Condition, dict[int, Mapping[str, float]]]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of Student's 95% confidence interval; NaN for a single value."""
    count, mean = len(values), sum(values) / len(values)
    if count < 2:
        return mean, math.nan
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    return mean, float(stats.t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)


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


def p_value(differences: Sequence[float]) -> float:
    """The two-sided p value of Student's paired test; NaN if there is nothing to test."""
    if len(differences) < 2 or len(set(differences)) == 1:
        return math.nan
    return float(stats.ttest_1samp(differences, 0.0).pvalue)

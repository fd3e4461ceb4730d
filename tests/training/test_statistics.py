"""Student's interval and paired test; neither finds anything where there is nothing to test."""

from __future__ import annotations

import math

import pytest

from pal_fast.training.statistics import interval, paired_p, spread

stats = pytest.importorskip("scipy.stats", reason="statistics over seeds need SciPy")


def test_the_interval_is_students_t():
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.302652 / math.sqrt(3), rel=1e-5)


def test_the_paired_test_is_scipys():
    differences = [1.0, 2.5, -0.5, 3.0]
    assert paired_p(differences) == pytest.approx(stats.ttest_1samp(differences, 0.0).pvalue)


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_equal_differences_have_no_p_value_whatever_their_rounding(factor):
    gains = [factor * (better - base) for better, base in ((0.57, 0.54), (0.65, 0.62), (0.40, 0.37))]
    assert len(set(gains)) > 1, "rounding makes them differ"
    assert math.isnan(paired_p(gains))
    assert math.isnan(paired_p([0.0, 0.0, 0.0]))


def test_differences_that_differ_by_little_have_a_p_value():
    assert paired_p([1.0, 1.0 + 1e-6, 1.0 - 1e-6]) < 1e-6


@pytest.mark.parametrize("values", [[], [1.5]])
def test_too_few_values_have_neither_spread_nor_interval_nor_p_value(values):
    assert math.isnan(spread(values)[1])
    assert math.isnan(interval(values)[1])
    assert math.isnan(paired_p(values))

"""Statistics over the seeds of a condition: mean, spread, Student's interval, and the test of paired differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, Final

#: Differences whose standard deviation is below this share of the largest are equal except for rounding.
_ROUNDING: Final = 1e-9


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; NaN if there are too few values."""
    mean = statistics.fmean(values) if values else math.nan
    return mean, statistics.stdev(values) if len(values) > 1 else math.nan


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of Student's 95% confidence interval of the mean; NaN if there are too few values."""
    mean, deviation = spread(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, float(_stats().t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))


def paired_p(differences: Sequence[float]) -> float:
    """Two-sided p value of Student's test that paired differences have mean 0.

    NaN if there is nothing to test: fewer than two differences, or all equal up to rounding.
    """
    if len(differences) < 2 or spread(differences)[1] <= _ROUNDING * max(map(abs, differences)):
        return math.nan
    return float(_stats().ttest_1samp(differences, 0.0).pvalue)


def _stats() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError("statistics over seeds need SciPy: pip install 'pal_fast[train]'") from error
    return stats

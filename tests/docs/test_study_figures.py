"""The figures of the study that other pages quote are those of benchmarks/results/study.csv."""

from __future__ import annotations

import csv
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMON = {
    **{"attribution": "grad_input", "absolute": "True", "channels": "mean", "score": "pearson", "scale": "sum"},
    **{"sigma": "3.0", "images": "350", "noise": "0.0", "head": "flattened"},
}


def accuracy(**condition: str) -> float:
    """The mean test accuracy in percent over the seeds of one condition."""
    wanted = {**COMMON, **condition}
    with (ROOT / "benchmarks" / "results" / "study.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if all(row[name] == value for name, value in wanted.items())]
    assert len(rows) >= 5, f"{condition}: {len(rows)} seeds"
    return 100 * statistics.fmean(float(row["accuracy"]) for row in rows)


@pytest.fixture(scope="module")
def plain() -> float:
    return accuracy(prior="none", weight="0.0")


def quoted(page: str, pattern: str) -> list[float]:
    found = re.search(pattern, " ".join((ROOT / page).read_text().split()))
    assert found, f"{page} no longer says {pattern!r}"
    return [float(number) for number in found.groups()]


def test_the_readmes_figures(plain):
    numbers = quoted("README.md", r"goes from ([\d.]+)% to ([\d.]+)% .*?random heatmaps bring it to ([\d.]+)%")
    pal = accuracy(prior="landmarks", target="label", weight="10.0")
    assert numbers == [
        round(value, 1) for value in (plain, pal, accuracy(prior="random", target="label", weight="10.0"))
    ]


def test_the_gains_on_the_page_about_choosing(plain):
    page = "docs/how_to/choosing.md"
    label, total = quoted(
        page, r"the label's logit gained ([\d.]+) points .*? and the sum ([\d.]+), at the same weight"
    )
    gains = [accuracy(prior="landmarks", target="label", weight=w) - plain for w in ("1.0", "3.0", "10.0")]
    assert label == round(gains[2], 1)
    assert total == round(accuracy(prior="landmarks", target="sum", weight="10.0") - plain, 1)
    assert quoted(page, r"\(\+([\d.]+), \+([\d.]+), \+([\d.]+) points\)") == [round(gain, 1) for gain in gains]
    both = [accuracy(prior="landmarks", target=target, weight="10.0") for target in ("predicted", "label")]
    assert quoted(page, r"\(([\d.]+)% against ([\d.]+)%\)") == [round(value, 1) for value in both]

"""The study's figures quoted in the README and the docs equal those in benchmarks/results/study.csv."""

from __future__ import annotations

import csv
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMON = {
    **{"attribution": "grad_input", "absolute": "True", "channels": "mean", "score": "pearson", "scale": "sum"},
    **{"sigma": "3.0", "images": "350", "noise": "0.0", "scatter": "0.0", "head": "flattened"},
}


def accuracy(measure: str = "accuracy", table: str = "study", seeds: int = 5, **condition: str) -> float:
    """The mean test accuracy in percent over the seeds of one condition."""
    wanted = {**COMMON, **condition}
    with (ROOT / "benchmarks" / "results" / f"{table}.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if all(row[name] == value for name, value in wanted.items())]
    assert len(rows) == len({row["seed"] for row in rows}) == seeds, f"{condition}: {len(rows)} rows"
    return 100 * statistics.fmean(float(row[measure]) for row in rows)


@pytest.fixture(scope="module")
def plain() -> float:
    return accuracy(prior="none", weight="0.0")


def quoted(page: str, pattern: str) -> list[float]:
    found = re.search(pattern, " ".join((ROOT / page).read_text().split()))
    assert found, f"{page} no longer says {pattern!r}"
    return [float(number) for number in found.groups()]


def test_the_figures_in_the_readme(plain):
    numbers = quoted("README.md", r"goes from ([\d.]+)% to ([\d.]+)% .*?random heatmaps leave it at ([\d.]+)%")
    pal = accuracy(prior="landmarks", target="label", weight="10.0")
    assert numbers == [round(value, 1) for value in (plain, pal, accuracy(prior="even", target="label", weight="10.0"))]


def test_the_gains_quoted_on_the_page_about_choosing_options(plain):
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


def test_the_table_of_all_conditions_equals_the_recorded_rows():
    pytest.importorskip("scipy")
    from benchmarks.study import command as study
    from benchmarks.study import report

    assert (ROOT / "docs" / "study_table.md").read_text() == report.table(study.read(study.RESULTS))


PAL = {"prior": "landmarks", "target": "label"}
METHODS = {
    '`"grad_input"`, `channels="mean"`': PAL,
    '`channels="all"`': PAL | {"channels": "all"},
    '`channels="each"`': PAL | {"channels": "each"},
    '`channels="half"`': PAL | {"channels": "half"},
    '`attribution="grad"`': PAL | {"attribution": "grad"},
    "`absolute=False` (signed `g f`)": PAL | {"absolute": "False"},
    '`attribution="activation"` (feature alignment)': PAL | {"attribution": "activation"},
    '`score="cross_correlation"`, `scale="mean"`': PAL | {"score": "cross_correlation", "scale": "mean"},
}
CIRCUMSTANCES = {
    "50 training faces": {"images": "50"},
    "100": {"images": "100"},
    "350": {},
    "700": {"images": "700"},
    "2,000": {"images": "2000"},
    "20% of the labels wrong": {"noise": "0.2"},
    "40% of the labels wrong": {"noise": "0.4"},
    "test faces occluded": {"measure": "accuracy_occluded"},
    "faces scattered over the image": {"scatter": "0.1"},
}


def row_of(name: str) -> list[str]:
    """The cells of a row of docs/study.md."""
    lines = (ROOT / "docs" / "study.md").read_text().splitlines()
    (row,) = [line for line in lines if line.startswith(f"| {name} | ")]
    return [cell.strip().strip("*") for cell in row.split("|")[2:-1]]


@pytest.mark.parametrize("name", METHODS)
def test_the_pages_figures_for_the_options(name):
    for cell, weight in zip(row_of(name), ("1.0", "3.0", "10.0"), strict=True):
        if cell:
            assert cell == f"{accuracy(**METHODS[name], weight=weight):.1f}"


@pytest.mark.parametrize("name", CIRCUMSTANCES)
def test_the_pages_figures_for_the_circumstances(name):
    plain, pal, gain, alignment = row_of(name)
    given = CIRCUMSTANCES[name]
    values = [
        accuracy(**given, prior="none", weight="0.0"),
        accuracy(**given, **PAL, weight="10.0"),
        accuracy(**given, **PAL | {"attribution": "activation"}, weight="10.0"),
    ]
    assert [plain, pal, alignment] == [f"{value:.1f}%" for value in values]
    assert gain.split(" ")[0] == f"{values[1] - values[0]:+.1f}"


def test_the_pages_figures_for_the_controls(plain):
    def gains(prior, *weights):
        return [round(accuracy(prior=prior, target="label", weight=w) - plain, 1) for w in weights]

    for name, prior in (
        ("PAL, random heatmaps, even in the mean, weight 1 / 3 / 10", "even"),
        ("PAL, the same, new ones at every step, weight 1 / 3 / 10", "redrawn"),
    ):
        accuracies, gained, follows = row_of(name)
        for cell, measure in ((accuracies, "accuracy"), (follows, "follows_cue")):
            values = [f"{accuracy(measure, prior=prior, weight=w):.1f}" for w in ("1.0", "3.0", "10.0")]
            assert cell == " / ".join(values) + "%"
        assert [float(gain) for gain in gained.split(" / ")] == gains(prior, "1.0", "3.0", "10.0")
    page = "docs/study.md"
    assert quoted(page, r"brought \+([\d.]+) points at weight 1 \(.*?\) and \+([\d.]+) at") == gains(
        "random", "1.0", "10.0"
    )
    frame = quoted(page, r"It brings \+([\d.]+), \+([\d.]+) and \+([\d.]+) points at the weights 1, 3 and 10")
    assert frame == gains("frame", "1.0", "3.0", "10.0")
    (pal,) = gains("landmarks", "10.0")
    assert frame[-1] / pal == pytest.approx(0.475, abs=0.025)  # "almost half"
    assert quoted(page, r"([\d.]+) points over the frame") == [pytest.approx(pal - frame[-1], abs=0.11)]
    assert quoted(page, r"one heatmap for every face, bring \+([\d.]+) points") == gains("average", "10.0")


def test_the_pages_figures_for_the_controls_on_more_seeds():
    more = {"table": "study_blind", "seeds": 10}
    plain = accuracy(prior="none", weight="0.0", **more)
    three = r"([+-][\d.]+), ([+-][\d.]+) and ([+-][\d.]+)"
    pattern = rf"study_blind.csv`\): {three} points .*? and {three} \("
    assert quoted("docs/study.md", pattern) == [
        round(accuracy(prior=prior, target="label", weight=weight, **more) - plain, 1)
        for prior in ("even", "redrawn")
        for weight in ("1.0", "3.0", "10.0")
    ]


def test_the_pages_figures_under_a_pooled_head():
    plain = accuracy(prior="none", weight="0.0", head="pooled")
    gains = [accuracy(**PAL, weight=weight, head="pooled") - plain for weight in ("1.0", "3.0", "10.0")]
    pattern = r"PAL gains ([\d.]+) points at weight 1 .*? nothing at 3 \((-[\d.]+), .*? chance \([\d.]+%; (-[\d.]+),"
    assert quoted("docs/study.md", pattern) == [round(gain, 1) for gain in gains]

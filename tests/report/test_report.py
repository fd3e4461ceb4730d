"""The report: a self-contained page that shows the runs' files unchanged, with every name escaped."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
import shutil
from html.parser import HTMLParser

import pytest

pytest.importorskip("accelerate", reason="accelerate is not installed (extra train)")

import numpy as np
from PIL import Image
from support.small_training import SMALL, quiet
from support.threads import one_thread

from pal_fast import cli
from pal_fast.report import write_report
from pal_fast.report.charts import Series, line_chart, ticks, whole_ticks
from pal_fast.report.gallery import comparisons
from pal_fast.report.runs import read_runs
from pal_fast.training import TrainingConfig, train

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Collects every tag with its attributes, in order; fails on tags that are not properly nested."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def of(self, tag: str, style: str = "") -> list[dict[str, str | None]]:
        return [
            found for name, found in self.tags if name == tag and style in [*(found.get("class") or "").split(" "), ""]
        ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with the loss and a baseline, in folders whose names need HTML escaping."""
    folder = tmp_path_factory.mktemp("runs")
    with one_thread():
        for name, weight in (('<b>"pal" & co', 3.0), ("plain", 0.0)):
            config = TrainingConfig(**SMALL | {"epochs": 3}, weight=weight)
            train(config, folder / name, say=quiet)
    return folder / '<b>"pal" & co', folder / "plain"


@pytest.fixture(scope="module")
def both(runs, tmp_path_factory):
    return write_report(runs, tmp_path_factory.mktemp("page") / "report.html").read_text()


def history(run) -> list[dict]:
    return json.loads((run / "history.json").read_text())


def test_the_page_is_well_formed_and_loads_no_other_resource(both):
    page = Page(both)
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "data"):
            assert (attributes.get(name) or "data:").startswith("data:")
        assert not any(name.startswith("on") for name in attributes)
    assert "link" not in dict(page.tags)
    assert "url(" not in both
    assert "@import" not in both
    assert not re.search(r"https?://", both)
    assert "prefers-color-scheme: dark" in both
    assert page.of("meta")[1]["content"] == "width=device-width, initial-scale=1"


def test_names_are_escaped(both):
    assert '<b>"pal"' not in both
    assert '<b>"pal" & co' in "".join(Page(both).text)
    assert html.escape('<b>"pal" & co') in both


def test_every_figure_equals_that_in_the_runs_files(both, runs):
    text = " ".join(Page(both).text)
    for run in runs:
        last = history(run)[-1]["validation"]
        assert f"{100 * last['accuracy']:.1f} %" in text
        assert f"{100 * last['balanced_accuracy']:.1f} %" in text
        assert f"{last['alignment']['body']['pearson']:.3f}".replace("-", "\N{MINUS SIGN}") in text
        for row in last["confusion"]:
            for count in filter(None, row):
                assert f"{count} of {sum(row)}" in both


def test_curves_have_a_point_for_each_epoch_of_each_run(both, runs):
    page = Page(both)
    charts = page.of("figure", "chart")
    assert len(charts) == 8
    lines = page.of("polyline")
    assert len(lines) == 2 * 7 + 1  # the baseline has no PAL curve
    assert all(len(line["points"].split()) == 3 for line in lines)
    pal, _ = runs
    losses = [entry["train"]["pal"] for entry in history(pal)]
    shown = re.findall(r"epoch \d: (\N{MINUS SIGN}?[\d.]+)</title>", both)[-3:]
    assert [float(number.replace("\N{MINUS SIGN}", "-")) for number in shown] == pytest.approx(losses, abs=0.02)


def test_faces_are_compared_at_the_ends_of_the_runs_and_sorted_by_alignment(both, runs):
    pal, plain = runs
    compared, *alone = comparisons(read_runs(runs))
    assert [column.title for column in compared.columns] == ["plain", '<b>"pal" & co']  # baselines first
    assert len(alone) == 2
    assert [column.title for column in alone[0].columns] == ["before training", "epoch 1", "epoch 3"]
    after = np.load(pal / "gallery" / "epoch_0003.npz")["alignment"]
    before = np.load(plain / "gallery" / "epoch_0003.npz")["alignment"]
    page = Page(both)
    cards = page.of("article", "card")
    assert len(cards) == 3 * 8
    assert [float(card["data-after"]) for card in cards[:8]] == pytest.approx(sorted(after, reverse=True), abs=1e-4)
    gains = sorted((after - before).tolist())
    assert sorted(float(card["data-gain"]) for card in cards[:8]) == pytest.approx(gains, abs=1e-4)
    assert len(page.of("img")) == 8 * 2 + 2 * 8 * 3
    for image in page.of("img")[:4]:
        content = base64.b64decode(image["src"].partition("base64,")[2])
        assert Image.open(io.BytesIO(content)).size == (144, 144)
    assert len(page.of("circle")) > 3 * 8 * 40  # landmarks
    assert {"after", "gain", "before", "label"} == {option["value"] for option in page.of("option")}


def test_a_single_run_is_compared_with_its_start_and_may_be_unfinished(runs, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(runs[0], copy)
    (copy / "result.json").unlink()
    (copy / "history.json").write_text(json.dumps(history(runs[0])[:2]))
    assert cli.main(["report", str(copy)]) == 0
    assert str(copy / "report.html") in capsys.readouterr().out
    text = (copy / "report.html").read_text()
    assert "2 of 3, in progress" in text
    (comparison,) = comparisons(read_runs([copy]))
    assert [column.title for column in comparison.columns] == ["before training", "epoch 1", "epoch 3"]
    assert len(Page(text).of("article")) == 8


def test_a_run_without_a_layer_or_a_gallery_has_a_page(tmp_path):
    with one_thread():
        config = TrainingConfig(**SMALL | {"epochs": 1, "gallery": 0}, weight=0)
        train(config, tmp_path / "run", say=quiet)
    text = write_report([tmp_path / "run"]).read_text()
    assert not Page(text).of("article")
    assert "Where the networks look" not in text


def test_a_folder_that_is_not_a_run_is_named_in_the_error(runs, tmp_path, capsys):
    for words, expected in (
        ([str(tmp_path)], "is not a run of pal-fast train"),
        ([str(runs[0]), str(runs[0])], "each folder once, got"),
        ([str(runs[0]), "-o", str(tmp_path / "absent" / "report.html")], "there is no folder"),
    ):
        assert cli.main(["report", *words]) == 2
        assert expected in capsys.readouterr().err
    broken = tmp_path / "broken"
    shutil.copytree(runs[1], broken)
    (broken / "gallery" / "epoch_0003.npz").write_bytes(b"no zip file")
    with pytest.raises(ValueError, match=r"epoch_0003\.npz is not a gallery file"):
        write_report([broken])
    assert not (broken / "report.html").exists()
    (broken / "history.json").write_text("[]")
    with pytest.raises(ValueError, match="no complete epoch"):
        write_report([broken])


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.97), (-0.3, -0.1), (2.0, 2.0), (0.0, 0.0), (1e-7, 3e-7), (0, 5e6)])
def test_ticks_are_round_and_cover_the_values(low, high):
    found = ticks(low, high)
    assert found[0] <= low + 1e-12
    assert found[-1] >= high - 1e-12
    assert 2 <= len(found) <= 8
    step = found[1] - found[0]
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - nice) for nice in (1, 2, 2.5, 5)) < 1e-6
    assert whole_ticks(1, 30) == [5.0, 10.0, 15.0, 20.0, 25.0, 30.0]
    assert whole_ticks(1, 1) == [1.0]


def test_a_chart_leaves_out_unknown_values():
    assert line_chart("empty", [Series("a", [(1, None), (2, float("nan"))], 0)]) == ""
    chart = line_chart(
        "some", [Series("a", [(1, 0.5), (2, None), (3, 0.75)], 9), Series("b", [(1, None)], 1)], percent=True
    )
    assert chart.count("<polyline") == 1
    assert len(re.search(r'points="([^"]*)"', chart)[1].split()) == 2
    assert 'class="line c1 dashed"' in chart
    assert "nan" not in chart
    assert "75" in chart

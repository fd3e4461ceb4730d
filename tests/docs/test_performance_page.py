"""docs/performance.md shows the contents of benchmarks/results and states what has not been measured."""

from __future__ import annotations

import re

import pytest

from benchmarks import draw, performance_page


def test_the_page_shows_the_current_results():
    text = performance_page.PAGE.read_text()
    assert text == performance_page.written(text), "python -m benchmarks.performance_page writes it anew"
    assert text.count("<!-- results: ") == text.count("<!-- end -->") == 8


def test_the_page_shows_every_picture_of_the_results_and_no_other():
    text = performance_page.PAGE.read_text()
    kept = {path.name for path in performance_page.IMAGES.glob("*_c[pu]*.png")}
    assert kept
    assert kept == set(re.findall(r"\]\(images/(\w+_c[pu]\w+\.png)\)", text))
    measured = tuple(path.stem for path in performance_page.RESULTS.glob("*.csv"))
    assert all(name.startswith(measured) for name in kept), "the page's pictures whose results are gone"


def test_only_the_trees_own_results_are_drawn_into_the_pages_images(tmp_path):
    assert draw.folder_of(performance_page.RESULTS / "loss_cpu.csv") == performance_page.IMAGES
    assert draw.folder_of(tmp_path / "loss_cpu.csv") == tmp_path


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(performance_page, "RESULTS", tmp_path)
    monkeypatch.setattr(performance_page, "IMAGES", tmp_path)
    return tmp_path


def test_figures_come_from_the_csv_and_unmeasured_ones_state_the_reason(results):
    (results / "loss_cpu.csv").write_text(
        "B,K,peer,mode,p50_ms,times_faster,share,peak_mb,note,device,torch\n"
        "2,68,eager,forward,1.0,1,,,,a CPU,2.15\n"
        "2,68,eager,both,35.25,1,0.19,,,a CPU,2.15\n"
        "2,68,compiled,both,,,,,torch.compile failed,a CPU,2.15\n"
        "4,68,cpu,both,7.5,4.7,0.85,0.004,,a CPU,2.15\n"
        "4,68,cuda,both,,,,,it takes CUDA tensors only,a CPU,2.15\n"
    )
    table = performance_page.table("loss", "cpu")
    assert "a CPU; torch 2.15." in table
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    assert rows[0] == ["B", *performance_page.SHOWN.values()]
    assert rows[2:] == [
        ["2", "eager", "35.2", "1", "19%", "–"],
        ["2", "compiled", "not measured: torch.compile failed", "", "", ""],
        ["4", "cpu", "7.5", "4.7", "85%", "0.004"],
    ]


def test_a_plot_follows_its_table(results):
    (results / "growth_cpu.csv").write_text("axis,peer,mode,p50_ms,note,device,torch\nB,cpu,both,1.0,,a CPU,2.15\n")
    assert performance_page.section("growth", "cpu") == "Medians. a CPU; torch 2.15.\n"
    (results / "growth_cpu.png").write_bytes(b"a picture")
    assert performance_page.section("growth", "cpu").endswith("torch 2.15.\n\n![The loss over batch, channels, cells "
                                                              "and landmarks](images/growth_cpu.png)\n")  # fmt: skip


def test_a_table_without_results_says_so(results):
    for device in ("cpu", "cuda"):
        assert performance_page.table("heatmap", device).startswith("*Empty: no ")

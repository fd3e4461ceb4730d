"""docs/performance.md shows what benchmarks/results holds, and says where nothing has been measured."""

from __future__ import annotations

import pytest

from benchmarks import performance_page


def test_the_page_shows_the_results_as_they_are():
    text = performance_page.PAGE.read_text()
    assert text == performance_page.written(text), "python -m benchmarks.performance_page writes it anew"
    assert text.count("<!-- results: ") == text.count("<!-- end -->") == 6


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(performance_page, "RESULTS", tmp_path)
    return tmp_path


def test_a_figure_is_the_csvs_and_what_was_not_measured_has_a_reason(results):
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


def test_a_table_without_results_says_so(results):
    for device in ("cpu", "cuda"):
        assert performance_page.table("heatmap", device).startswith("*Empty: no ")

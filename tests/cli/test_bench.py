"""`pal-fast bench` is the front end of the benchmarks."""

from __future__ import annotations

import pytest

from pal_fast import cli


def test_bench_runs_a_subject_and_writes_its_results_to_the_given_folder(tmp_path, capsys):
    assert cli.main(["bench", "growth", "--quick", "--device", "cpu", "--rounds", "1", "--output", str(tmp_path)]) == 0
    assert (tmp_path / "growth_cpu.csv").is_file()
    assert "calls dominate below" in capsys.readouterr().out


def test_bench_refuses_an_unknown_subject_and_lists_the_known_ones(capsys):
    assert cli.main(["bench", "los"]) == 2
    assert "unknown subject 'los'; must be one of loss, heatmap, attribution, growth" in capsys.readouterr().err


def test_help_names_the_subjects(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    assert "loss, heatmap, attribution, growth" in " ".join(capsys.readouterr().out.split())

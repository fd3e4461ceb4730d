"""The data-loading benchmark: both sides do the same work, and landmarks stay cheap."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("PIL")

from support.threads import one_thread

from benchmarks import loading, machine


@one_thread()
@pytest.mark.filterwarnings("ignore:.*classes without images")
def test_landmarks_cost_little_beside_the_image() -> None:
    """The published limit holds on an idle machine; this test only catches landmarks that cost as much as the image."""
    without, with_landmarks, ratio = loading.measure(loading.Case(100, 224), rounds=9, count=16)
    assert without > 0
    assert with_landmarks > 0
    assert ratio < 1.35


def recorded_ratios() -> list[dict[str, str]]:
    with loading.RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_recorded_ratios_are_within_the_limit_and_on_the_page() -> None:
    if not loading.RESULTS.is_file():
        pytest.skip("the tree of the sources is not here")
    rows = recorded_ratios()
    assert {(row["stored"], row["size"]) for row in rows} == {("100", "100"), ("100", "224"), ("224", "224")}
    page = (Path(loading.__file__).parents[1] / "docs/how_to/landmarks.md").read_text()
    for row in rows:
        assert float(row["ratio"]) <= loading.LIMIT
        times = f"{row['without_ms']} ms | {row['with_ms']} ms | {row['ratio']}"
        assert f"| {row['stored']} px | {row['size']} px | {times} |" in page


@pytest.mark.parametrize(("ratios", "status"), [((1.0, 1.05, 1.1), 0), ((1.0, 1.2, 1.0), 1), ((1, float("nan"), 1), 1)])
def test_a_ratio_above_the_limit_fails_and_rows_record_the_machine(
    ratios: tuple[float, ...], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(ratios)
    environment = dict.fromkeys(machine.COLUMNS, "x") | {"device": "a processor", "threads": 1}
    monkeypatch.setattr(loading, "measure", lambda case, rounds, count: (2.0, 2.0, next(left)))
    monkeypatch.setattr(loading, "RESULTS", tmp_path / "loading.csv")
    monkeypatch.setattr(machine, "environment", lambda device: environment)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    assert loading.main([]) == status
    rows = recorded_ratios()
    assert [float(row["ratio"]) for row in rows] == pytest.approx(ratios, nan_ok=True)
    for row in rows:
        assert row["device"] == "a processor"
        assert row["threads"] == "1"
        assert set(machine.COLUMNS) <= set(row)
    (tmp_path / "loading.csv").unlink()
    left = iter(ratios[1:])
    assert loading.main(["--quick"]) == status
    assert not loading.RESULTS.exists()

"""The harness reports times only for correct results, records reasons for failures, and measures what it claims."""

from __future__ import annotations

import argparse
import importlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.squares import CPU, Square, options_of, peer, subject, values

from benchmarks import attribution, growth, growth_fit, harness, heatmap, loss, machine, results_csv
from benchmarks.command import run_subject
from benchmarks.harness import Call, Peer, Prepared, Subject


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.square()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad


def unavailable(case: Square, device: torch.device) -> Prepared:
    raise harness.UnavailableError("it is not installed")


def rows_of(*peers: Peer) -> dict[tuple[str, str], harness.Row]:
    rows = harness.measure(subject(*peers), Square(), CPU, rounds=3, quick=True)
    return {(row.peer, row.mode): row for row in rows}


def test_a_correct_peer_gets_times_rates_and_ratios_in_every_mode() -> None:
    rows = rows_of(peer("square", torch.square), peer("product", lambda x: x * x))
    assert len(rows) == 6
    for row in rows.values():
        assert row.milliseconds is not None
        p20, p50, p80 = row.milliseconds
        assert 0 < p20 <= p50 <= p80
        assert row.rate == pytest.approx(row.traffic / p50 * 1e3)
        assert row.share == pytest.approx(row.rate / row.machine_rate)
        assert row.error <= row.bound
    for mode in harness.MODES:
        first, second = rows["square", mode], rows["product", mode]
        assert first.ratio == 1
        assert second.ratio == pytest.approx(first.milliseconds[1] / second.milliseconds[1])


@pytest.mark.parametrize(
    "wrong",
    [lambda x: x.square() * 1.0001, lambda x: x.square() * torch.nan, lambda x: x.square().sum(0), WrongGradient.apply],
    ids=["value", "nan", "shape", "gradient"],
)
def test_a_wrong_peer_gets_no_time_and_fails_the_command(wrong: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(peer("square", torch.square), peer("wrong", wrong))
    for mode in harness.MODES:
        assert rows["square", mode].milliseconds is not None
        assert rows["wrong", mode].milliseconds is None
        assert rows["wrong", mode].note.startswith("wrong: differs by ")
    options = options_of()
    assert run_subject(subject(peer("wrong", wrong)), options) == 1
    assert "wrong: differs" in capsys.readouterr().out
    assert run_subject(subject(peer("square", torch.square)), options) == 0


def test_unavailable_peers_and_those_without_gradient_are_recorded_with_the_reason() -> None:
    def detached(case: Square, device: torch.device) -> Prepared:
        return Prepared(lambda: values().detach().square())

    rows = rows_of(Peer("absent", unavailable), Peer("detached", detached))
    assert {rows["absent", mode].note for mode in harness.MODES} == {"it is not installed"}
    assert rows["detached", "forward"].milliseconds is not None
    assert rows["detached", "both"].milliseconds is None
    assert rows["detached", "both"].note == "it has no gradient"


def test_a_peer_may_have_its_own_reference_and_bound() -> None:
    def own(case: Square, device: torch.device) -> list[torch.Tensor]:
        x = values(torch.float64)
        y = x.pow(3)
        return [y.detach(), *torch.autograd.grad(y, x, harness.upstream_of(y))]

    assert rows_of(peer("cube", lambda x: x**3, judge=own))["cube", "both"].milliseconds is not None
    assert rows_of(peer("near", lambda x: x.square() * 1.01, bound=0.02))["near", "both"].milliseconds is not None


def test_peers_take_turns() -> None:
    order: list[str] = []

    def watched(name: str) -> Peer:
        return peer(name, lambda x: (order.append(name), x.square())[1])

    rows_of(watched("a"), watched("b"))
    rounds = 3 + 2
    # A round times forward, backward (preceded by a forward) and both, for each peer.
    assert order[-6 * rounds :] == (["a"] * 3 + ["b"] * 3) * rounds


def test_peak_memory_counts_what_a_call_allocates_beyond_its_gradients() -> None:
    def call(_: Any) -> Any:
        big = torch.zeros(1000, 250)  # 1 MB
        bigger = torch.zeros(2000, 250)  # 2 MB while the first is alive
        del big
        return (bigger + 1,)  # 2 MB more, which is returned

    peak = harness.peak_memory(Call(call), CPU)
    assert 3e6 - 2e6 <= peak <= 3.2e6
    assert harness.peak_memory(Call(lambda _: torch.zeros(1000, 250)), CPU) == pytest.approx(1e6, rel=0.01)
    assert harness.peak_memory(Call(lambda kept: kept.sum(), lambda: torch.zeros(1000, 250)), CPU) < 1e4


def test_rows_and_their_machine_round_trip_through_the_csv(tmp_path: Path) -> None:
    rows = rows_of(peer("square", torch.square), Peer("absent", unavailable))
    environment = machine.environment(CPU)
    path = tmp_path / "squares_cpu.csv"
    results_csv.write(path, [results_csv.record_of(row, environment) for row in rows.values()])
    records = results_csv.read(path)
    assert len(records) == 6
    assert list(records[0]) == ["side", *results_csv.MEASURED, *machine.COLUMNS]
    assert float(records[0]["p50_ms"]) > 0
    assert records[0]["torch"] == torch.__version__
    assert records[0]["device"] == machine.processor()
    assert records[0]["load"]
    assert records[-1]["p50_ms"] == ""
    assert records[-1]["note"] == "it is not installed"


def test_no_rate_is_rounded_to_zero() -> None:
    """Plots divide by the rate; a loaded machine once took 92 ms for 0.3 MB of traffic."""
    row = harness.Row(Square(2), "a", "both", (9e4, 9e4, 9e4), traffic=300, work=300, machine_rate=1e3)
    record = results_csv.record_of(row, {})
    assert record["gb_s"] == pytest.approx(300 / 90 / 1e9, rel=1e-4)
    assert record["gflop_s"] == pytest.approx(300 / 90 / 1e9, rel=1e-4)
    assert record["machine_gb_s"] == pytest.approx(1e-6)


def without_compiler(subject: Subject) -> Subject:
    return replace(subject, peers=[p for p in subject.peers if not p.name.startswith("compiled")])


def test_attributions_are_compared_in_float32_even_where_convolutions_default_to_tf32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In TF32, PyTorch's default for convolutions on a GPU, every peer would deviate from the judge by 7e-2."""
    seen: list[bool] = []
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(attribution, "run_subject", lambda *_: seen.append(torch.backends.cudnn.allow_tf32) or 0)
    assert attribution.run(argparse.Namespace()) == 0
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("name", ["loss", "heatmap", "attribution", "growth"])
def test_a_quick_run_checks_times_and_plots_every_subject(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "attribution":
        pytest.importorskip("torchvision", reason="the benchmark's network is torchvision's")
    module = importlib.import_module(f"benchmarks.{name}")
    options = options_of(output=tmp_path, threads=1)
    assert run_subject(without_compiler(module.SUBJECT), options) == 0
    records = results_csv.read(tmp_path / f"{name}_cpu.csv")
    timed = {record["peer"] for record in records if record["p50_ms"]}
    if name == "attribution":
        assert {"autograd by hand", "pal_fast.attribution_map", "pal_fast.attribute"} <= timed
    else:
        assert {"cpu", "einsum" if name == "heatmap" else "reference"} <= timed
    for record in records:
        assert record["p50_ms"] or record["note"], record
        assert not record["note"].startswith("wrong"), record
        if record["p50_ms"]:
            assert float(record["error"]) <= float(record["bound"])
    pictures = sorted(tmp_path.glob("*.png"))
    assert len(pictures) == (2 if name == "loss" else 1)
    assert all(picture.stat().st_size > 10_000 for picture in pictures)
    assert "wrote" in capsys.readouterr().out


def test_the_compiled_reference_is_measured_alongside_the_eager_one() -> None:
    only = replace(loss.SUBJECT, peers=[p for p in loss.SUBJECT.peers if p.name.startswith("compiled")])
    rows = harness.measure(only, loss.LossCase(2, 3, 4, 4, 2), CPU, rounds=1, quick=True)
    for row in rows:
        assert row.milliseconds is not None or "torch.compile failed" in row.note, row.note


def test_the_traffic_of_the_loss_matches_the_specification() -> None:
    case = loss.LossCase(2, 3, 5, 7, dtype=torch.bfloat16)
    elements = 2 * 3 * 5 * 7
    assert [loss.traffic(case, mode) for mode in harness.MODES] == [4 * elements, 8 * elements, 12 * elements]
    assert loss.traffic(replace(case, dtype=torch.float32), "both") == 24 * elements


def test_the_cases_have_the_shapes_in_the_specification() -> None:
    gpu = loss.cases(torch.device("cuda"), False)
    shapes = {(case.channels, case.height) for case in gpu}
    assert shapes == {(1024, 14), (512, 28), (512, 14), (2048, 7)}
    assert {case.batch for case in gpu} >= {16, 64, 256}
    large = [c for c in gpu if c.batch * c.channels * c.height * c.width * c.dtype.itemsize >= 256e6]
    assert {(c.dtype, c.layout) for c in large} == {
        (dtype, layout) for dtype in (torch.float32, torch.bfloat16) for layout in ("contiguous", "channels_last")
    }
    first, second, *_ = heatmap.cases(torch.device("cuda"), False)
    assert first == heatmap.HeatmapCase(256, 68, 224)
    assert heatmap.SUBJECT.traffic(second, "forward") > 3 * 60e6, "larger than the L2 cache of an H200"
    assert all(c.batch * c.landmarks * c.side for c in heatmap.cases(CPU, False))


def test_the_growth_fit_recovers_the_line_and_where_call_overhead_stops_dominating() -> None:
    sizes = [1, 3, 10, 30, 100]
    records = [
        {"axis": "B", "peer": "cpu", "mode": mode, "size": str(size), "p50_ms": str(0.5 + 0.02 * size)}
        for size in sizes
        for mode in ("both", "forward")
    ]
    (line,) = growth_fit.fit([*records, {"axis": "B", "peer": "cuda", "mode": "both", "size": "1", "p50_ms": ""}])
    assert line.fixed_ms == pytest.approx(0.5)
    assert line.slope_ms == pytest.approx(0.02)
    assert line.turning_point == pytest.approx(25)
    assert line.exponent == pytest.approx(math.log(2.5 / 1.1) / math.log(100 / 30))
    span = {case.axis: [] for case in growth.cases(CPU, False)}
    for case in growth.cases(CPU, False):
        span[case.axis].append(case.size)
    assert all(max(sizes) / min(sizes) >= 100 for sizes in span.values()), span

"""The GPU check without a GPU reports that nothing was run; with a stubbed runner, every state reaches the report."""

from __future__ import annotations

import importlib
import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_check import command as gpu_check
from benchmarks.gpu_check import steps as gpu_steps
from benchmarks.gpu_check.command import Outcome
from benchmarks.lost_device import LOST

STEPS = [
    *("build", "first tests", "launches", "graph", "loss", "heatmap", "step", "gpu tests", "repeat"),
    *("memcheck", "racecheck", "initcheck", "synccheck", "attribution", "growth", "other tests", "compiled step"),
]
MACHINE = {"device": "A GPU", "driver": "580.1", "extension": "sm_90 compute_90"}


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the check believe that a GPU is present."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(shutil, "which", lambda name, path: f"/bin/{name}")


class Stub:
    """Stub runner: returns the outcome given for each command's step, and records the calls."""

    def __init__(self, **answers: Outcome) -> None:
        self.answers = answers
        self.received: list[tuple[list[str], dict[str, str], float]] = []

    def __call__(self, command: Sequence[str], environment: dict[str, str], timeout: float) -> Outcome:
        words = " ".join(command)
        if words.endswith("benchmarks.machine"):
            return Outcome(0, f"noise\n{json.dumps(MACHINE)}\n")
        self.received.append((list(command), environment, timeout))
        for name, outcome in self.answers.items():
            if name in words:
                return outcome
        return Outcome(0, "12 passed in 3 s")


def report_of(directory: Path) -> tuple[str, dict[str, dict[str, object]]]:
    record = json.loads((directory / "gpu_check.json").read_text())
    return (directory / "gpu_check.md").read_text(), {step["name"]: step for step in record["steps"]}


def test_without_a_gpu_nothing_is_run_and_the_report_says_so(no_gpu: None, tmp_path: Path) -> None:
    stub = Stub()
    assert gpu_check.main(["--output", str(tmp_path)], stub) == 0
    text, steps = report_of(tmp_path)
    assert "Nothing was run: PyTorch sees no CUDA GPU" in text
    assert "passed" not in text
    assert not steps
    assert not stub.received
    assert gpu_check.main(["--output", str(tmp_path), "--require-gpu"], stub) == 1


def test_the_report_is_written_to_the_folder_named_by_out(
    no_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    gpu_check.main([], Stub())
    assert (tmp_path / "out" / "gpu_check.md").is_file()


def test_every_step_runs_in_order_and_is_reported_with_device_and_driver(a_gpu: None, tmp_path: Path) -> None:
    claim = json.dumps({"claim": "one launch", "holds": True, "detail": ""})
    stub = Stub(probes=Outcome(0, f"noise\n{claim}\n{claim}\n"))
    assert gpu_check.main(["--output", str(tmp_path)], stub) == 0
    text, steps = report_of(tmp_path)
    assert list(steps) == STEPS
    assert {step["state"] for step in steps.values()} == {"passed"}
    assert steps["gpu tests"]["summary"] == "12 passed in 3 s"
    assert steps["repeat"]["summary"] == "2 of 2 claims hold"
    for expected in ("A GPU", "580.1", "compute_capability: 90", "extension: sm_90 compute_90"):
        assert expected in text
    build, environment, _ = stub.received[0]
    assert build[1:] == ["setup.py", "build_ext", "--inplace"]
    assert environment == {"PAL_FAST_CUDA": "1", "PAL_FAST_ARCHS": "90"}
    memcheck = next(command for command, _, _ in stub.received if "memcheck" in command)
    assert memcheck[0] == "/bin/compute-sanitizer"
    assert "--error-exitcode" in memcheck
    assert "10000" in next(command for command, _, _ in stub.received if "repeat" in command)
    assert not any(word == "--seconds" for word in build)


def test_a_failed_step_and_a_timed_out_step_fail_the_check_and_show_their_output(a_gpu: None, tmp_path: Path) -> None:
    broken = json.dumps({"claim": "one launch forward", "holds": False, "detail": "fill; loss"})
    stub = Stub(launches=Outcome(1, broken + "\n"), racecheck=Outcome(None, "still running"))
    assert gpu_check.main(["--output", str(tmp_path)], stub) == 1
    text, steps = report_of(tmp_path)
    assert steps["launches"]["state"] == "failed"
    assert steps["launches"]["summary"] == "0 of 1 claims hold; not: one launch forward (fill; loss)"
    assert steps["racecheck"]["state"] == "out of time"
    assert "still running" in text
    assert steps["graph"]["state"] == "passed", "one failure does not stop the others"


def test_steps_whose_tools_are_not_installed_are_skipped_with_the_reason(
    a_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path: None)
    assert gpu_check.main(["--output", str(tmp_path), "--skip", "step"], Stub()) == 0
    _, steps = report_of(tmp_path)
    assert [name for name, step in steps.items() if step["state"] == "skipped"] == list(gpu_steps.SANITIZERS)
    assert steps["memcheck"]["summary"] == "compute-sanitizer is not installed"
    assert "step" not in steps


def test_a_tool_that_is_not_on_path_is_found_beside_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert gpu_check.program_of("compute-sanitizer") == str(tool)
    assert gpu_check.program_of("no-such-tool") is None


@pytest.mark.parametrize("outcome", [Outcome(1, "nvcc fatal: no such file"), Outcome(None, "compiling")])
def test_after_a_failed_build_nothing_else_is_run(outcome: Outcome, a_gpu: None, tmp_path: Path) -> None:
    stub = Stub(build_ext=outcome)
    assert gpu_check.main(["--output", str(tmp_path)], stub) == 1
    assert len(stub.received) == 1
    text, steps = report_of(tmp_path)
    assert list(steps) == STEPS
    assert {step["summary"] for name, step in steps.items() if name != "build"} == {"the build failed"}
    assert {step["state"] for name, step in steps.items() if name != "build"} == {"skipped"}
    assert outcome.output in text


def test_a_time_budget_is_divided_among_the_steps(a_gpu: None, tmp_path: Path) -> None:
    stub = Stub()
    assert gpu_check.main(["--output", str(tmp_path), "--minutes", "9"], stub) == 0
    assert len(stub.received) == len(STEPS)
    for (command, _, timeout), step in zip(stub.received, gpu_steps.steps(tmp_path, "90", False), strict=True):
        assert timeout >= step.seconds - 1
        assert ("--seconds" in command) == step.timed
        if step.timed:
            assert float(command[command.index("--seconds") + 1]) <= timeout - 15
    wanted = gpu_steps.steps(tmp_path, "90", False)[0].seconds
    assert stub.received[0][2] == pytest.approx(wanted), "nothing is left over while more is wanted than there is"
    stub = Stub()
    assert gpu_check.main(["--output", str(tmp_path), "--minutes", "0.1"], stub) == 0
    assert not stub.received
    assert {step["summary"] for step in report_of(tmp_path)[1].values()} == {"no time was left"}


def test_time_that_a_step_does_not_use_goes_to_the_next_steps() -> None:
    build, heatmap, step = (
        next(s for s in gpu_steps.steps(Path(), "90", False) if s.name == name) for name in ("build", "heatmap", "step")
    )
    assert gpu_check.share_of(build, [heatmap, step], 240) == build.seconds
    assert gpu_check.share_of(heatmap, [step], 215) == 215 - step.seconds
    assert gpu_check.share_of(step, [], 150) == 150
    assert gpu_check.share_of(build, [heatmap, step], 30) == 30
    assert gpu_check.share_of(heatmap, [step], math.inf) == 60 * heatmap.minutes


def test_a_benchmark_that_loses_the_gpu_is_rerun_without_the_peer(a_gpu: None, tmp_path: Path) -> None:
    class Losing(Stub):
        def __call__(self, command: Sequence[str], environment: dict[str, str], timeout: float) -> Outcome:
            outcome = super().__call__(command, environment, timeout)
            if "benchmarks.loss" in command and "--without" not in command:
                return Outcome(LOST, "loss on A GPU\nlost the GPU in 'triton'\n")
            return outcome

    stub = Losing(loss=Outcome(0, "loss: 60 of 60 cases in 99 s\n"))
    assert gpu_check.main(["--output", str(tmp_path), "--only", "loss", "heatmap"], stub) == 1
    again = next(command for command, _, _ in stub.received if "--without" in command)
    assert again[again.index("--without") + 1] == "triton"
    _, steps = report_of(tmp_path)
    assert steps["loss"]["state"] == "failed"
    assert steps["loss"]["summary"] == "loss: 60 of 60 cases in 99 s; lost the GPU in 'triton'"
    assert steps["heatmap"]["state"] == "passed"


def test_every_kernel_and_the_step_have_their_turn_within_nine_minutes() -> None:
    """If every step takes all of its share. No benchmark or probe comes before the first tests of the kernels."""
    left, begun = 9 * 60.0, []
    chosen = gpu_steps.steps(Path(), "90", False)
    for index, step in enumerate(chosen):
        seconds = gpu_check.share_of(step, chosen[index + 1 :], left)
        if seconds < step.seconds:
            break
        left -= seconds
        begun.append(step.name)
    assert begun == ["build", "first tests", "launches", "graph", "loss", "heatmap", "step"]


def test_the_first_tests_select_some_of_every_file() -> None:
    """A file that is not there would end pytest before it has run any test."""
    assert all((gpu_check.ROOT / name).exists() for name in gpu_steps.GPU_TESTS)
    (step,) = (step for step in gpu_steps.steps(Path(), "90", False) if step.name == "first tests")
    chosen = step.command[step.command.index("-m", 3) :]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--collect-only", *chosen]
    outcome = gpu_check.run_command(command, {"PYTEST_ADDOPTS": ""}, 300)
    assert outcome.status == 0, outcome.output
    selected = {line.split("::")[0] for line in outcome.output.splitlines() if "::" in line}
    assert selected == set(gpu_steps.FIRST_TESTS)
    assert "float64" not in outcome.output


def test_tests_that_ran_out_of_time_are_summarised_by_those_that_ran() -> None:
    assert gpu_steps._passed("a::b PASSED [ 1%]\n==== 3 passed, 2 deselected in 4.00s ====\n") == (
        "3 passed, 2 deselected in 4.00s"
    )
    assert gpu_steps._passed("a::b PASSED [ 1%]\n[gw1] [ 2%] FAILED a::c\n[gw0] [ 3%] PASSED a::d\na::e ") == (
        "2 passed, 1 failed until then"
    )


def test_a_truncated_claim_does_not_abort_the_check() -> None:
    whole = json.dumps({"claim": "one launch", "holds": True, "detail": ""})
    assert gpu_steps._claims(f"{whole}\n{whole[:30]}") == "1 of 1 claims hold"


def test_every_steps_command_is_accepted_by_its_program(tmp_path: Path) -> None:
    """Checked for the benchmarks, whose parsers exit on an unknown option."""
    for step in gpu_steps.steps(tmp_path, "90", quick=True):
        words = list(step.command)
        if "-m" not in words or words[words.index("-m") + 1] == "pytest":
            continue
        at = words.index("-m") + 1
        more = ["--seconds", "5"] if step.timed else []
        more += ["--without", "triton" if "step" not in step.name else "naive"] if step.without else []
        name = words[at]
        module = importlib.import_module(
            f"{name}.command" if gpu_check.ROOT.joinpath(*name.split(".")).is_dir() else name
        )
        with pytest.raises(SystemExit) as ended:  # --help exits only after the options before it have been parsed
            module.main([*words[at + 1 :], *more, "--help"])
        assert ended.value.code == 0, step.name


def test_steps_can_be_selected(a_gpu: None, tmp_path: Path) -> None:
    stub = Stub()
    assert gpu_check.main(["--output", str(tmp_path), "--only", "graph", "--quick", "--all-architectures"], stub) == 0
    assert list(report_of(tmp_path)[1]) == ["graph"]
    assert len(stub.received) == 1
    assert gpu_check.main(["--output", str(tmp_path), "--only", "build", "gpu tests", "step"], stub) == 0
    assert list(report_of(tmp_path)[1]) == ["build", "gpu tests", "step"], "in the given order"


def test_a_build_for_all_architectures_leaves_their_choice_to_setup(a_gpu: None, tmp_path: Path) -> None:
    stub = Stub()
    assert gpu_check.main(["--output", str(tmp_path), "--only", "build", "--all-architectures"], stub) == 0
    assert stub.received[0][1] == {"PAL_FAST_CUDA": "1"}
    assert "the extension builds with CUDA for every architecture" in (tmp_path / "gpu_check.md").read_text()

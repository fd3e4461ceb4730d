"""Everything that only a GPU can prove, in one command, with a report.

    python -m benchmarks.gpu_check                    builds, tests, counts, measures, captures, repeats, sanitises
    python -m benchmarks.gpu_check --only launches    some of it
    python -m benchmarks.gpu_check --minutes 9        as far as it gets on a GPU that is free for ten

On a GPU that is lent for fifteen minutes, start included, at most ten of them for a command:

    python -m benchmarks.gpu_check --minutes 9 --output first
    python -m benchmarks.gpu_check --only build "gpu tests" step --minutes 3 --output second     at once after it
    python -m benchmarks.targets first second                                                    anywhere, afterwards

The first has a test of every kernel, the targets of the loss and the heatmap, and the first steps; the second, all
tests that need a GPU, and steps again. Each reports the targets that it measured itself; `targets` judges both.

Steps are ordered by information per second (`steps`), with --only as given, and run in separate processes. If time is
short, each gets a share, and what it leaves over goes to the next; benchmarks stop by themselves and keep the cases
they have finished. After a failed build no other step is run. Writes gpu_check.md and gpu_check.json to --output, else
$OUT, else benchmarks/results, and rewrites them after every step. Prints the figures and whether the targets are met
(`targets`) last. Status 1 if a step failed or ran out of time. Without a GPU nothing is run and the report says so
(status 0; 1 with --require-gpu).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from pal_fast.files import write_text

from .. import machine, targets
from ..arguments import DIRECTORY
from ..lost_device import LOST, lost_peer
from .steps import Step, steps

ROOT = Path(__file__).resolve().parents[2]
#: The states of a step that did not show what it should.
BROKEN = ("failed", "out of time")
#: A step with less time is not started.
LEAST_SECONDS = 10.0
#: A benchmark's time besides its cases: to start, to end, and for a case that takes longer than those before.
ASIDE_SECONDS = 20.0
#: Characters of a step's output kept in the report.
MOST_OUTPUT = 200_000
#: Lines of figures on the terminal: a remote one may show only the last 12,000 characters.
MOST_LOSSES, MOST_STEPS = 32, 14


@dataclass(frozen=True)
class Outcome:
    """The outcome of a command: its status, None if it ran out of time, and its whole output."""

    status: int | None
    output: str


Runner = Callable[[Sequence[str], dict[str, str], float], Outcome]


def run_command(command: Sequence[str], environment: dict[str, str], timeout: float) -> Outcome:
    """Runs a command in the source tree. On a timeout it is killed with its child processes, which would hold the GPU.

    Its output goes to a file: children in sessions of their own, such as PyTorch's compiler, may outlive it and would
    keep a pipe open.
    """
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return Outcome(127, str(error))
        status: int | None = None
        try:
            status = process.wait(timeout if math.isfinite(timeout) else None)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        log.seek(0)
        return Outcome(status, log.read().decode(errors="replace"))


@dataclass
class Result:
    name: str
    shows: str
    command: str
    state: str  # passed, failed, skipped, out of time
    summary: str
    seconds: float
    output: str = ""


def share_of(step: Step, later: Sequence[Step], seconds_left: float) -> float:
    """The most seconds that a step gets: its own, or what the later steps do not need."""
    wanted = sum(other.seconds for other in later)
    return min(seconds_left, step.minutes * 60, max(step.seconds, seconds_left - wanted))


def program_of(name: str) -> str | None:
    """Where a program is: on PATH or, as NVIDIA's installer leaves it, only beside nvcc."""
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    folders = [os.environ.get("PATH", os.defpath), *(f"{home}/bin" for home in homes if home)]
    return shutil.which(name, path=os.pathsep.join(folders))


def skipped(step: Step, reason: str) -> Result:
    return Result(step.name, step.shows, " ".join(step.command), "skipped", reason, 0.0)


def perform(step: Step, run: Runner, seconds: float = math.inf) -> Result:
    """Runs a step. A benchmark in which a peer lost the GPU is repeated once without that peer."""
    if step.needs:
        program = program_of(step.needs)
        if program is None:
            return skipped(step, f"{step.needs} is not installed")
        step = replace(step, command=(program, *step.command[1:]))
    if seconds < LEAST_SECONDS:
        return skipped(step, "no time was left")
    command = " ".join(step.command)
    start = time.perf_counter()
    outcome = run(_within(step, seconds), step.environment, seconds)
    lost = lost_peer(outcome.output) if step.without and outcome.status == LOST else ""
    left = seconds - (time.perf_counter() - start)
    if lost and left >= LEAST_SECONDS:
        again = replace(step, command=(*step.command, "--without", lost))
        second = run(_within(again, left), step.environment, left)
        outcome = Outcome(1 if second.status == 0 else second.status, f"{outcome.output}\n{second.output}")
    taken = time.perf_counter() - start
    state = "out of time" if outcome.status is None else "failed" if outcome.status else "passed"
    summary = step.summary(outcome.output)
    if not summary and state == "failed":
        last = (outcome.output.strip().splitlines() or [""])[-1]
        summary = f"status {outcome.status}: {last[:150]}"
    if lost:
        summary += f"; lost the GPU in {lost!r}"
    return Result(step.name, step.shows, command, state, summary, taken, outcome.output[-MOST_OUTPUT:])


def _within(step: Step, seconds: float) -> tuple[str, ...]:
    if not step.timed or not math.isfinite(seconds):
        return step.command
    return (*step.command, "--seconds", f"{max(1.0, seconds - ASIDE_SECONDS):.0f}")


def write_report(
    directory: Path,
    environment: dict[str, object],
    results: Sequence[Result],
    note: str = "",
    verdicts: Sequence[str] = (),
) -> None:
    """gpu_check.json holds the output; gpu_check.md the table, the targets and the tail of failed steps' output."""
    directory.mkdir(parents=True, exist_ok=True)
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    record = {"when": when, "note": note, **environment, "targets": list(verdicts)}
    record["steps"] = [asdict(result) for result in results]
    write_text(directory / "gpu_check.json", json.dumps(record, indent=1) + "\n")
    lines = ["# GPU check", "", f"`python -m benchmarks.gpu_check`, {when}.", ""]
    lines += [f"- {name}: {value}" for name, value in environment.items() if value != ""]
    if note:
        lines += ["", note]
    if results:
        lines += ["", "| step | shows that | state | seconds | found |", "|---|---|---|---|---|"]
    for result in results:
        found = result.summary.replace("|", "/")
        lines.append(f"| {result.name} | {result.shows} | **{result.state}** | {result.seconds:.0f} | {found} |")
    if verdicts:
        lines += ["", "## Targets", "", "```", *verdicts, "```"]
    for result in results:
        if result.state in BROKEN:
            tail = "\n".join(result.output.splitlines()[-40:])
            lines += ["", f"## {result.name}: {result.state}", "", f"`{result.command}`", "", "```", tail, "```"]
    write_text(directory / "gpu_check.md", "\n".join(lines) + "\n")


def environment_of(run: Runner) -> dict[str, object]:
    """The machine, and what the extension was built for, as seen by a separate process after the build."""
    outcome = run((sys.executable, "-m", "benchmarks.machine"), {}, 60)
    last = (outcome.output.strip().splitlines() or [""])[-1]
    try:
        found: dict[str, object] = json.loads(last)
    except ValueError:
        return {"device": f"unknown: {last[:100]}"}
    return found


def architecture_of(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}{minor}"


def main(arguments: Sequence[str] | None = None, run: Runner = run_command) -> int:
    began, end = time.time(), time.perf_counter()
    names = [step.name for step in steps(Path(), "", False)]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=names, metavar="STEP", help=f"some of {', '.join(names)}")
    parser.add_argument("--skip", nargs="+", choices=names, metavar="STEP", default=[], help="run all but these")
    parser.add_argument("--output", type=Path, help="directory of the report (default $OUT, else benchmarks/results)")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="time limit for all steps together (default: no limit)"
    )
    parser.add_argument("--quick", action="store_true", help="200 repetitions and small benchmarks")
    parser.add_argument(
        "--all-architectures", action="store_true", help="build for all architectures, not just this GPU's"
    )
    parser.add_argument("--require-gpu", action="store_true", help="status 1 if there is no GPU")
    options = parser.parse_args(arguments)
    end += 60 * options.minutes
    output: Path = options.output or Path(os.environ.get("OUT") or DIRECTORY)

    if not torch.cuda.is_available():
        note = "**Nothing was run: PyTorch sees no CUDA GPU.** No claim about a GPU is made here."
        write_report(output, machine.environment(torch.device("cpu")), [], note)
        print(f"nothing was run: PyTorch sees no CUDA GPU; {output / 'gpu_check.md'} says so")
        return 1 if options.require_gpu else 0

    architecture = architecture_of(torch.device("cuda"))
    built_for = "" if options.all_architectures else architecture
    every = {step.name: step for step in steps(output.resolve(), built_for, options.quick)}
    chosen = [every[name] for name in options.only or names if name not in options.skip]
    environment: dict[str, object] = {"compute_capability": architecture}
    results: list[Result] = []
    verdicts: list[str] = []
    for index, step in enumerate(chosen):
        print(f"{step.name:11} {step.shows} ...", flush=True)
        if any(result.name == "build" and result.state in BROKEN for result in results):
            results.append(skipped(step, "the build failed"))
        else:
            results.append(perform(step, run, share_of(step, chosen[index + 1 :], end - time.perf_counter())))
        print(f"{'':11} {results[-1].state} in {results[-1].seconds:.0f} s: {results[-1].summary[:400]}", flush=True)
        verdicts = [str(verdict) for verdict in targets.verdicts(output, since=began)]
        write_report(output, environment, results, "", verdicts)  # before anything else can fail
        if index == 0:
            environment |= environment_of(run)
            write_report(output, environment, results, "", verdicts)
    figures = targets.figures(output, since=began, most_losses=MOST_LOSSES, most_steps=MOST_STEPS)
    print("", *figures, "", *_ends(results), "", *verdicts, sep="\n")
    print(f"wrote {output / 'gpu_check.md'}")
    return 1 if any(result.state in BROKEN for result in results) else 0


def _ends(results: Sequence[Result]) -> list[str]:
    return [f"{result.name:14} {result.state:12} {result.seconds:4.0f} s  {result.summary[:120]}" for result in results]

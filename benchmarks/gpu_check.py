"""Everything that only a GPU can prove, in one command, and a report of it.

    python -m benchmarks.gpu_check                    builds, counts, captures, tests, repeats, measures, sanitises
    python -m benchmarks.gpu_check --only launches    some of it
    python -m benchmarks.gpu_check --minutes 9        as far as it gets on a machine that is lent for ten

Steps come in the order of what they tell for their time. Writes gpu_check.md and gpu_check.json, after every step anew,
to --output, else $OUT, else benchmarks/results. Status 1 if a step failed or ran out of time. Without a GPU nothing is
run and the report says so (status 0; 1 with --require-gpu).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from . import machine
from .options import DIRECTORY, SUBJECTS
from .step import EAGER, VARIANTS

ROOT = Path(__file__).resolve().parents[1]
#: A step that has fewer is not begun.
LEAST_SECONDS = 10.0
#: Subjects whose figures are asked for; the others are timed after all checks.
FIRST = ("loss", "heatmap")
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its status, None if it ran out of time, and all that it printed."""

    status: int | None
    output: str


Runner = Callable[[Sequence[str], dict[str, str], float], Outcome]


def run_command(command: Sequence[str], environment: dict[str, str], timeout: float) -> Outcome:
    """Runs a command in the source tree. Out of time, it ends with all that it started, which would hold the GPU."""
    try:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **environment}, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return Outcome(127, str(error))
    try:
        printed, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
        return Outcome(None, printed)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return Outcome(process.returncode, printed)


@dataclass(frozen=True)
class Step:
    """A command, what its success shows, and how its output is put in a line."""

    name: str
    shows: str
    command: tuple[str, ...]
    summary: Callable[[str], str]
    environment: dict[str, str] = field(default_factory=dict)
    minutes: float = 10.0
    needs: str = ""  # a program that must be on PATH


@dataclass
class Result:
    name: str
    shows: str
    command: str
    state: str  # passed, failed, skipped, out of time
    summary: str
    seconds: float
    output: str = ""


def steps(output: Path, architecture: str, quick: bool) -> list[Step]:
    """Every step, in order. `architecture` is what the extension is built for."""
    python = sys.executable
    probe = (python, "-m", "benchmarks.gpu_probes")
    pytest = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    workers = min(8, max(1, (os.cpu_count() or 1) // 2)) if importlib.util.find_spec("xdist") else 1
    parallel = ("-n", str(workers)) if workers > 1 else ()
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # so that a read past a tensor leaves its allocation
    times = "200" if quick else "10000"
    small = ("--quick",) if quick else ()
    step = (python, "-m", "benchmarks.step", "--device", "cuda", *small)

    def timed(name: str) -> Step:
        command = (python, "-m", f"benchmarks.{name}", "--device", "cuda", "--output", str(output), *small)
        return Step(name, "what is right is timed beside its peers", command, _pictures, minutes=60)

    found = [
        Step(
            "build",
            f"the extension builds with CUDA for sm_{architecture.replace(';', ', sm_')}",
            (python, "setup.py", "build_ext", "--inplace"),
            lambda text: _last(text, r"pal_fast: built .*"),
            {"PAL_FAST_CUDA": "1", "PAL_FAST_ARCHS": architecture},
            minutes=20,
        ),
        Step("launches", "one launch forward, one backward; the host never waits", (*probe, "launches"), _claims),
        Step("graph", "a CUDA graph captures the loss and replays it", (*probe, "graph"), _claims),
        Step("gpu tests", "every test that wants a GPU passes", (*pytest, *parallel, "-m", "gpu"), _passed, minutes=60),
        Step("repeat", f"the same bits {times} times", (*probe, "repeat", "--times", times), _claims, minutes=20),
        *(timed(name) for name in FIRST),
        Step(
            "step",
            "a training step with PAL, beside other ways to write it",
            (*step, "--variants", *EAGER, "--output", str(output / "step_cuda.csv")),
            _pal_row,
            minutes=60,
        ),
    ]
    found += [
        Step(
            tool,
            f"compute-sanitizer's {tool} finds nothing in the operators' tests",
            ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--target-processes", "all",
             *pytest, "-x", "-m", "gpu", "tests/ops"),
            lambda text: _last(text, r"=+ (ERROR|RACECHECK) SUMMARY: .*"),
            uncached,
            minutes=40,
            needs="compute-sanitizer",
        )
        for tool in SANITIZERS
    ]  # fmt: skip
    compiled = [name for name in VARIANTS if name == "plain" or name not in EAGER]
    found += [
        *(timed(name) for name in SUBJECTS if name not in FIRST),
        Step(
            "other tests",
            "so does the rest of the test suite",
            (*pytest, *parallel, *(("--dist", "loadfile") if parallel else ()), "-m", "not gpu"),
            _passed,
            minutes=60,
        ),
        Step(
            "compiled step",
            "compiled training steps, beside the plain one",
            (*step, "--variants", *compiled, "--output", str(output / "step_compiled_cuda.csv")),
            _pal_row,
            minutes=120,
        ),
    ]
    return found


def _last(text: str, pattern: str) -> str:
    matches = [match[0] for match in re.finditer(f"^{pattern}$", text, re.MULTILINE)]
    return matches[-1].strip("= \n") if matches else ""


def _passed(text: str) -> str:
    """What pytest says at its end."""
    return _last(text, r".*\d+ (passed|failed|error).*")


def _pictures(text: str) -> str:
    return f"{len(re.findall(r'^wrote ', text, re.MULTILINE))} pictures"


def _pal_row(text: str) -> str:
    return _last(text, r"\s+PALLoss .*").strip()


def _claims(text: str) -> str:
    """How many claims of a probe hold, and which do not."""
    found = [json.loads(line) for line in text.splitlines() if line.startswith('{"claim"')]
    broken = [f"{claim['claim']} ({claim['detail']})" for claim in found if not claim["holds"]]
    return f"{len(found) - len(broken)} of {len(found)} claims hold" + "".join(f"; not: {line}" for line in broken)


def perform(step: Step, run: Runner, seconds_left: float = math.inf) -> Result:
    command = " ".join(step.command)
    if step.needs and shutil.which(step.needs) is None:
        return Result(step.name, step.shows, command, "skipped", f"{step.needs} is not installed", 0.0)
    if seconds_left < LEAST_SECONDS:
        return Result(step.name, step.shows, command, "skipped", "no time was left", 0.0)
    start = time.perf_counter()
    outcome = run(step.command, step.environment, min(step.minutes * 60, seconds_left))
    seconds = time.perf_counter() - start
    state = "out of time" if outcome.status is None else "failed" if outcome.status else "passed"
    summary = step.summary(outcome.output) or ("" if state == "passed" else f"status {outcome.status}")
    return Result(step.name, step.shows, command, state, summary, seconds, outcome.output)


def write_report(directory: Path, environment: dict[str, object], results: Sequence[Result], note: str = "") -> None:
    """gpu_check.json holds all output, gpu_check.md the table and the end of what failed."""
    directory.mkdir(parents=True, exist_ok=True)
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    record = {"when": when, "note": note, **environment, "steps": [asdict(result) for result in results]}
    (directory / "gpu_check.json").write_text(json.dumps(record, indent=1) + "\n")
    lines = ["# GPU check", "", f"`python -m benchmarks.gpu_check`, {when}.", ""]
    lines += [f"- {name}: {value}" for name, value in environment.items() if value != ""]
    if note:
        lines += ["", note]
    if results:
        lines += ["", "| step | shows that | state | seconds | found |", "|---|---|---|---|---|"]
    for result in results:
        found = result.summary.replace("|", "/")
        lines.append(f"| {result.name} | {result.shows} | **{result.state}** | {result.seconds:.0f} | {found} |")
    for result in results:
        if result.state in ("failed", "out of time"):
            tail = "\n".join(result.output.splitlines()[-40:])
            lines += ["", f"## {result.name}: {result.state}", "", f"`{result.command}`", "", "```", tail, "```"]
    (directory / "gpu_check.md").write_text("\n".join(lines) + "\n")


def architecture_of(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}{minor}"


def main(arguments: Sequence[str] | None = None, run: Runner = run_command) -> int:
    names = [step.name for step in steps(Path(), "", False)]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=names, metavar="STEP", help=f"of {', '.join(names)}")
    parser.add_argument("--skip", nargs="+", choices=names, metavar="STEP", default=[], help="all but these")
    parser.add_argument("--output", type=Path, help="directory of the report (default $OUT, else benchmarks/results)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="for all steps together (default: no limit)")
    parser.add_argument("--quick", action="store_true", help="200 repetitions and small benchmarks")
    parser.add_argument("--all-architectures", action="store_true", help="build the fat binary, not this GPU's part")
    parser.add_argument("--require-gpu", action="store_true", help="status 1 where there is no GPU")
    options = parser.parse_args(arguments)
    end = time.perf_counter() + 60 * options.minutes
    output: Path = options.output or Path(os.environ.get("OUT") or DIRECTORY)

    if not torch.cuda.is_available():
        note = "**Nothing was run: PyTorch sees no CUDA GPU.** No claim about a GPU is made here."
        write_report(output, machine.environment(torch.device("cpu")), [], note)
        print(f"nothing was run: PyTorch sees no CUDA GPU; {output / 'gpu_check.md'} says so")
        return 1 if options.require_gpu else 0

    device = torch.device("cuda")
    architecture = "75;80;86;89;90;100;120" if options.all_architectures else architecture_of(device)
    chosen = [
        step
        for step in steps(output.resolve(), architecture, options.quick)
        if step.name in (options.only or names) and step.name not in options.skip
    ]
    environment = {**machine.environment(device), "compute_capability": architecture_of(device)}
    results: list[Result] = []
    for step in chosen:
        print(f"{step.name:11} {step.shows} ...", flush=True)
        results.append(perform(step, run, end - time.perf_counter()))
        print(f"{'':11} {results[-1].state} in {results[-1].seconds:.0f} s: {results[-1].summary}", flush=True)
        write_report(output, environment, results)
    print(f"wrote {output / 'gpu_check.md'}")
    return 1 if any(result.state in ("failed", "out of time") for result in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""The steps of `benchmarks.gpu_check`: their commands, ordered by information per second."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..arguments import SUBJECTS
from ..step.command import EAGER, VARIANTS

#: Subjects with targets; the others are timed after all checks.
FIRST = ("loss", "heatmap")
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
#: A quick selection of the tests that need a GPU, with every family of kernels, CUDA's and Triton's: files and what
#: `-k` leaves out of them. With one worker, Triton's compiler takes most of the time, half a second for each kernel.
FIRST_TESTS = (
    "tests/cuda/test_gpu.py", "tests/ops/test_loss.py", "tests/ops/test_heatmap.py",
    "tests/nn/test_batch_norm_cuda.py", "tests/nn/test_cuda_graph.py", "tests/nn/test_flash_attention_gpu.py",
    "tests/triton/test_layers.py", "tests/triton/test_attention.py", "tests/nn/test_batch_norm_triton.py",
    "tests/triton/test_loss.py", "tests/triton/test_heatmap.py",
)  # fmt: skip
LEFT_OUT = "float64"
GPU_TESTS = ("tests/ops", "tests/cuda/test_gpu.py", "tests/loss", "tests/nn", "tests/triton", "tests/training_loops",
             "tests/training/test_resume.py")  # fmt: skip
#: A file that fails to import for a missing package does not stop the others; a kernel that always fails does.
SURVIVING = ("--continue-on-collection-errors", "--maxfail", "40")


@dataclass(frozen=True)
class Step:
    """A command, what its success shows, and how its output is summarised in a line."""

    name: str
    shows: str
    command: tuple[str, ...]
    summary: Callable[[str], str]
    #: Its share if the time for all steps together is short.
    seconds: float
    environment: dict[str, str] = field(default_factory=dict)
    minutes: float = 10.0  # the limit otherwise
    needs: str = ""  # a program, the command's first word, that may not be installed
    timed: bool = False  # accepts --seconds, and stops by itself with its results so far
    without: bool = False  # accepts --without PEER, and is repeated with it if that peer lost the GPU


def steps(output: Path, architecture: str, quick: bool) -> list[Step]:
    """Every step, in order. The extension is built for `architecture`, or, if "", for those that setup.py names."""
    python = sys.executable
    probe = (python, "-m", "benchmarks.gpu_check.probes")
    times = "200" if quick else "10000"
    small = ("--quick",) if quick else ()
    step = (python, "-m", "benchmarks.step", "--device", "cuda", "--rounds", "10", *small)

    def subject(name: str, seconds: float) -> Step:
        command = (
            python,
            "-m",
            f"benchmarks.{name}",
            "--device",
            "cuda",
            "--output",
            str(output),
            "--no-pictures",
            *small,
        )
        return Step(name, "right results are timed against peers", command, _cases, seconds, minutes=60, timed=True,
                    without=True)  # fmt: skip

    compiled = [name for name in VARIANTS if name == "plain" or name not in EAGER]
    return [
        Step(
            "build",
            f"the extension builds with CUDA for {f'sm_{architecture}' if architecture else 'every architecture'}",
            (python, "setup.py", "build_ext", "--inplace"),
            lambda text: _last(text, r"pal_fast: built .*"),
            100,
            {"PAL_FAST_CUDA": "1", **({"PAL_FAST_ARCHS": architecture} if architecture else {})},
            minutes=20,
        ),
        _tests(
            "first tests", "every kernel's first tests pass", ("-m", "gpu", "-k", f"not {LEFT_OUT}", *FIRST_TESTS), 80
        ),
        Step("launches", "one launch forward, one backward; the host never waits", (*probe, "launches"), _claims, 35),
        Step("graph", "a CUDA graph captures the loss and replays it", (*probe, "graph"), _claims, 20),
        subject("loss", 150),
        subject("heatmap", 45),
        Step(
            "step",
            "a training step with PAL, against other ways to write it",
            (*step, "--variants", *EAGER, "--output", str(output / "step_cuda.csv")),
            _cases,
            110,
            minutes=60,
            timed=True,
            without=True,
        ),
        _tests("gpu tests", "every test that needs a GPU passes", ("-m", "gpu", *GPU_TESTS), 120),
        Step(
            "repeat", f"the same bits {times} times", (*probe, "repeat", "--times", times), _claims, 50, minutes=20,
            timed=True,
        ),
        *(_sanitizer(tool) for tool in SANITIZERS),
        *(subject(name, 40) for name in SUBJECTS if name not in FIRST),
        _tests("other tests", "so does the rest of the test suite", ("-m", "not gpu"), 60),
        Step(
            "compiled step",
            "compiled training steps, against the plain one",
            (*step, "--variants", *compiled, "--output", str(output / "step_compiled_cuda.csv")),
            _cases,
            60,
            minutes=120,
            timed=True,
            without=True,
        ),
    ]  # fmt: skip


def _tests(name: str, shows: str, chosen: Sequence[str], seconds: float) -> Step:
    """Tests whose workers share the GPU's memory; tests that need much of it stay in one worker."""
    workers = min(8, max(1, (os.cpu_count() or 1) // 2)) if importlib.util.find_spec("xdist") else 1
    parallel = ("-n", str(workers), "--dist", "loadgroup") if workers > 1 else ()
    command = (sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *SURVIVING, *parallel, *chosen)
    return Step(name, shows, command, _passed, seconds, minutes=60)


def _sanitizer(tool: str) -> Step:
    """Small calls of every kernel. CUDA API errors that PyTorch itself provokes are not reported."""
    return Step(
        tool,
        f"compute-sanitizer's {tool} finds nothing in small calls of every kernel",
        ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--target-processes", "application-only",
         "--report-api-errors", "no", "--launch-timeout", "120",
         sys.executable, "-m", "benchmarks.gpu_check.small_calls"),
        _sanitized,
        60,
        {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},  # so that a read past a tensor leaves its allocation
        minutes=40,
        needs="compute-sanitizer",
        timed=True,
    )  # fmt: skip


def _last(text: str, pattern: str) -> str:
    matches = [match[0] for match in re.finditer(f"^{pattern}$", text, re.MULTILINE)]
    return matches[-1].strip("= \n") if matches else ""


def _passed(text: str) -> str:
    """pytest's summary line; if pytest was stopped before it wrote one, the tests until then."""
    summary = _last(text, r"(=+ )?\d+ (passed|failed|skipped|errors?|deselected)\b.* in .*")
    if summary:
        return summary
    counts = Counter(re.findall(r"\b(PASSED|FAILED|ERROR)\b", text))
    return ", ".join(f"{count} {state.lower()}" for state, count in counts.items()) + (" until then" if counts else "")


def _sanitized(text: str) -> str:
    return f"{_last(text, r'=+ (ERROR|RACECHECK) SUMMARY: .*')}; {_last(text, r'[0-9]+ of [0-9]+ calls by .*')}".strip(
        "; "
    )


def _cases(text: str) -> str:
    """A benchmark's summary line."""
    return _last(text, r"\w+: \d+ of \d+ cases in .*")


def _claims(text: str) -> str:
    """How many claims of a probe hold, and which do not. The last line may be truncated."""
    found = []
    for line in text.splitlines():
        if line.startswith('{"claim"') and line.endswith("}"):
            found.append(json.loads(line))
    broken = [f"{claim['claim']} ({claim['detail']})" for claim in found if not claim["holds"]]
    return f"{len(found) - len(broken)} of {len(found)} claims hold" + "".join(f"; not: {line}" for line in broken)

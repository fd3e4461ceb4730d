"""How the GPU check runs a step: a command with a time limit, its output kept and its children killed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from benchmarks.gpu_check.command import Outcome, run_command


def test_a_command_returns_its_status_and_output_and_sees_its_environment() -> None:
    python = sys.executable
    assert run_command([python, "-c", "print('x'); raise SystemExit(3)"], {}, 60) == Outcome(3, "x\n")
    outcome = run_command([python, "-c", "import os; print(os.environ['A'])"], {"A": "b"}, 60)
    assert outcome == Outcome(0, "b\n")


def test_a_timed_out_command_is_killed_with_its_children(tmp_path: Path) -> None:
    """Orphaned workers would occupy the GPU while the next step is timed."""
    child = f"import time; time.sleep(8); open({str(tmp_path / 'alive')!r}, 'w')"
    code = (
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); print('y', flush=True); "
        "time.sleep(60)"
    )
    start = time.monotonic()
    late = run_command([sys.executable, "-c", code], {}, 3)
    assert late == Outcome(None, "y\n")
    assert time.monotonic() - start < 7
    time.sleep(max(0.0, 10 - (time.monotonic() - start)))
    assert not (tmp_path / "alive").exists()


def test_children_in_another_session_are_not_waited_for() -> None:
    """PyTorch's compiler starts its workers in a new session, and they would hold a pipe open."""
    code = (
        "import subprocess, sys; print('z', flush=True); "
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(20)'], start_new_session=True)"
    )
    start = time.monotonic()
    assert run_command([sys.executable, "-c", code], {}, 15) == Outcome(0, "z\n")
    assert time.monotonic() - start < 10


def test_a_timed_out_command_keeps_its_output() -> None:
    code = "import time; print('half'); time.sleep(60)"
    assert run_command([sys.executable, "-c", code], {}, 3) == Outcome(None, "half\n")


def test_a_missing_program_returns_status_127() -> None:
    assert run_command(["/nowhere/compute-sanitizer"], {}, 5).status == 127

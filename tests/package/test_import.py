"""What `import pal_fast` costs and requires."""

from __future__ import annotations

import subprocess
import sys

from support.installed import installed

import pal_fast

#: Allowed besides the standard library.
ALLOWED = {"torch", "numpy", "pal_fast"}

#: Imports PyTorch once; each forked child then prints a line: wall and CPU seconds of a yardstick, the same of the
#: import, and the modules that the import added.
CODE = """
import os, sys, time
import numpy, torch

def measured(statement):
    wall, cpu = time.perf_counter(), time.process_time()
    exec(statement)
    return time.perf_counter() - wall, time.process_time() - cpu

for _ in range(7):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        before = set(sys.modules)
        yardstick, imported = measured("sum(range(2_000_000))"), measured("import pal_fast")
        print(*yardstick, *imported, *sorted({name.split(".")[0] for name in set(sys.modules) - before}))
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def test_import_takes_less_than_a_fifth_of_a_second_and_needs_only_torch_and_numpy():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    runs = [line.split() for line in done.stdout.strip().splitlines()]
    assert len(runs) == 7
    # The least disturbed of seven runs, scaled to a quiet machine: a busy one slows the preceding yardstick as well.
    numbers = [[float(number) for number in run[:4]] for run in runs]
    added = [wall / max(1.0, yard_wall / yard_cpu) for yard_wall, yard_cpu, wall, _ in numbers]
    assert min(added) < 0.2, f"{added} from {numbers}"
    names = set(runs[0][4:])
    assert "pal_fast" in names
    third_party = {name for name in names if name not in sys.stdlib_module_names} - ALLOWED
    assert not {name for name in third_party if not name.startswith("_")}, third_party


def test_the_installed_version_is_the_packages():
    assert installed().version == pal_fast.__version__


def test_the_extras_named_in_the_docs_exist():
    extras = {line.split("extra ==")[1].strip(" \"'") for line in installed().requires or [] if "extra ==" in line}
    assert {"explain", "landmarks", "train", "metrics", "test", "lint", "docs"} <= extras

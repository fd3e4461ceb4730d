"""What `import pal_fast` costs and needs."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import requires, version

import pal_fast

#: Allowed beside the standard library.
ALLOWED = {"torch", "numpy", "pal_fast"}

CODE = """
import sys, time
import torch, numpy
import torch.library
before = set(sys.modules)
start = time.perf_counter()
import pal_fast
print(time.perf_counter() - start)
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""


def run() -> tuple[float, set[str]]:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    seconds, names = done.stdout.strip().splitlines()[-2:]
    return float(seconds), set(names.split())


def test_import_adds_less_than_a_fifth_of_a_second_and_needs_torch_and_numpy_only():
    runs = [run() for _ in range(3)]
    assert min(seconds for seconds, _ in runs) < 0.2
    third_party = {name for name in runs[0][1] if name not in sys.stdlib_module_names} - ALLOWED
    assert not {name for name in third_party if not name.startswith("_")}, third_party


def test_one_place_defines_the_version():
    assert version("pal_fast") == pal_fast.__version__


def test_the_extras_that_the_docs_name_exist():
    extras = {line.split("extra ==")[1].strip(" \"'") for line in requires("pal_fast") or [] if "extra ==" in line}
    assert {"explain", "landmarks", "train", "metrics", "test", "lint", "docs"} <= extras

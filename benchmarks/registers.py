"""Registers, spills and shared memory of every CUDA kernel, read from the compiler's report of a build.

    PAL_FAST_CUDA=1 python setup.py build_ext --inplace    # leaves build/temp.*/cuda_*.log
    python -m benchmarks.registers                         # writes benchmarks/results/registers.csv

`tests/cuda/test_registers.py` checks the table: no kernel spills on any architecture, and none is missing.
"""

from __future__ import annotations

import argparse
import csv
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "benchmarks/results/registers.csv"
COLUMNS = ("kernel", "architecture", "registers", "spill_stores", "spill_loads", "shared_bytes")

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\w+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def read_report(text: str) -> Iterator[tuple[str, str, int, int, int, int]]:
    """The rows of one report of `ptxas -v`, with mangled kernel names; shared memory is static only."""
    entry: tuple[str, str] | None = None
    spills: tuple[int, int] | None = None
    for line in text.splitlines():
        if found := _ENTRY.search(line):
            entry, spills = (found[1], found[2]), None
        elif found := _SPILLS.search(line):
            spills = int(found[1]), int(found[2])
        elif (found := _USED.search(line)) and entry and spills:
            shared = _SHARED.search(line)
            yield (*entry, int(found[1]), *spills, int(shared[1]) if shared else 0)
            entry = None


def readable(names: list[str]) -> list[str]:
    """`_ZN8pal_fast4cuda...` -> `map_forward_kernel<float, true, false>`; needs c++filt from binutils."""
    if not shutil.which("c++filt"):
        raise SystemExit("c++filt (binutils) is needed to read the kernels' names")
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    plain = []
    for line in text.splitlines():
        line = re.sub(r"\(anonymous namespace\)::|pal_fast::cuda::", "", line.removeprefix("void "))
        depth = 0
        for position, character in enumerate(line):  # the arguments begin at the first parenthesis outside <>
            depth += {"<": 1, ">": -1}.get(character, 0)
            if character == "(" and depth == 0:
                line = line[:position]
                break
        plain.append(re.sub(r"\((?:Derivative|Tiling|int|bool)\)", "", line))
    return plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, help="the build's object directory (default: build/temp.*)")
    parser.add_argument("--output", type=Path, default=TABLE)
    arguments = parser.parse_args()
    directories = [arguments.build] if arguments.build else sorted((ROOT / "build").glob("temp.*"))
    logs = [log for directory in directories for log in sorted(directory.glob("cuda_*.cu.log"))]
    if not logs:
        raise SystemExit("no report of a CUDA build was found; see this file's docstring")
    rows = [row for log in logs for row in read_report(log.read_text())]
    names = readable([row[0] for row in rows])
    table = sorted((name, *row[1:]) for name, row in zip(names, rows, strict=True))
    table.sort(key=lambda row: (row[0], int(re.sub(r"\D", "", row[1]))))
    with arguments.output.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(table)
    spilling = sum(row[3] > 0 or row[4] > 0 for row in table)
    print(f"{len(table)} kernels and architectures, {spilling} that spill: {arguments.output}")


if __name__ == "__main__":
    main()

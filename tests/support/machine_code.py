"""The machine code of the built extension's kernels, disassembled by cuobjdump."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from benchmarks.registers import readable

_FUNCTION = re.compile(r"\sFunction : (\w+)")
#: An access to memory other than shared memory: global (or generic) and local.
_ACCESS = re.compile(r"\s((?:LDG|STG|LDL|STL|LD|ST)(?:\.\w+)*)\s")


def read_accesses(listing: Iterable[str]) -> dict[str, Counter[str]]:
    """How often each kernel (mangled) has each instruction that accesses global or local memory."""
    kernels: dict[str, Counter[str]] = {}
    for line in listing:
        if "Function :" in line and (function := _FUNCTION.search(line)):
            kernels[function[1]] = counts = Counter()
        elif ("LD" in line or "ST" in line) and (access := _ACCESS.search(line)):
            counts[access[1]] += 1
    return kernels


def accesses(extension: Path, architecture: str, disassembler: str) -> dict[str, Counter[str]]:
    """The same for an extension's machine code for one architecture, with demangled kernel names."""
    command = [disassembler, "-sass", "-arch", architecture, str(extension)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        kernels = read_accesses(process.stdout)
    assert process.returncode == 0, f"{command} returned {process.returncode}"
    return dict(zip(readable(list(kernels)), kernels.values(), strict=True))


def read_products(listing: Iterable[str]) -> dict[str, str]:
    """For each kernel (mangled) of a listing, the order of warpgroup products (P) and waits for them (W)."""
    kernels: dict[str, str] = {}
    for line in listing:
        if function := _FUNCTION.search(line):
            kernels[name := function[1]] = ""
        elif "HGMMA" in line or "WARPGROUP.DEPBAR" in line:
            kernels[name] += "P" if "HGMMA" in line else "W"
    return kernels


def products(extension: Path, disassembler: str) -> dict[str, str]:
    """The same for an extension's machine code, with demangled names of the kernels that have products."""
    command = [disassembler, "-sass", "-arch", "sm_90a", str(extension)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    kernels = {name: order for name, order in read_products(done.stdout.splitlines()).items() if order}
    return dict(zip(readable(list(kernels)), kernels.values(), strict=True))


def read_stacks(report: Iterable[str]) -> dict[tuple[str, str], int]:
    """Bytes of local memory by (kernel, architecture), from a report of resource usage; names are mangled."""
    stacks: dict[tuple[str, str], int] = {}
    architecture = kernel = ""
    for line in report:
        if found := re.search(r"^arch = (sm_\w+)", line):
            architecture = found[1]
        elif found := re.search(r"^ Function (\w+):", line):
            kernel = found[1]
        elif found := re.search(r" STACK:(\d+) .* LOCAL:(\d+)", line):
            stacks[kernel, architecture] = int(found[1]) + int(found[2])
    return stacks


def stacks(extension: Path, disassembler: str) -> dict[tuple[str, str], int]:
    """The same for an extension's machine code."""
    command = [disassembler, "-res-usage", str(extension)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return read_stacks(done.stdout.splitlines())


def bits(access: str) -> int:
    """How many bits of memory an instruction accesses: `STG.E.128.STRONG.SM` -> 128, `LDG.E.U16` -> 16."""
    width = re.search(r"\.[US]?(8|16|64|128)(?=\.|$)", access)
    return int(width[1]) if width else 32


def wide(counts: Counter[str], kind: str, width: int) -> int:
    """How many instructions of a kind, "LDG" or "STG", access `width` bits."""
    return sum(count for access, count in counts.items() if access.startswith(f"{kind}.") and bits(access) == width)

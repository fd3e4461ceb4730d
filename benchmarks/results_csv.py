"""Rows of a result to CSV and back: one file per subject and device, rewritten after every case."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from pal_fast.files import atomic_write

from . import machine
from .harness import Row

MEASURED = (
    "peer", "mode", "p20_ms", "p50_ms", "p80_ms", "times_faster", "gb_s", "gflop_s", "yardstick", "machine_gb_s",
    "share", "peak_mb", "error", "bound", "peer_version", "note",
)  # fmt: skip


def record_of(row: Row, environment: Mapping[str, object]) -> dict[str, object]:
    """A row as the CSV's columns."""
    p20, p50, p80 = row.milliseconds or (None, None, None)
    values = (
        row.peer, row.mode, rounded(p20, 6), rounded(p50, 6), rounded(p80, 6), rounded(row.ratio, 3),
        _rate(None if row.rate is None else row.rate / 1e9),
        _rate(None if row.work is None or p50 is None else row.work / p50 / 1e6),
        row.yardstick, _rate(None if row.machine_rate is None else row.machine_rate / 1e9), rounded(row.share, 3),
        rounded(None if row.peak_bytes is None else row.peak_bytes / 1e6, 3),
        None if row.error is None else f"{row.error:.1e}", None if row.bound is None else f"{row.bound:.1e}",
        row.version, row.note,
    )  # fmt: skip
    return {**row.case.columns(), **dict(zip(MEASURED, values, strict=True)), **environment}


def write(path: Path, records: Sequence[Mapping[str, object]]) -> None:
    columns = [name for name in records[0] if name not in MEASURED and name not in machine.COLUMNS]
    write_rows(path, [*columns, *MEASURED, *machine.COLUMNS], records)


def write_rows(path: Path, columns: Sequence[str], records: Sequence[Mapping[str, object]]) -> None:
    """Replaces the file atomically: a run that is killed meanwhile keeps the previous one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(records)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _rate(value: float | None) -> float | None:
    """Rounds to five significant digits: rates are divisors, and may be small on a loaded machine."""
    return None if value is None else float(f"{value:.5g}")


def rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)

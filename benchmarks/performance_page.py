"""Generates the tables of docs/performance.md from benchmarks/results: `python -m benchmarks.performance_page`.

A table contains only what its CSV holds, and states why a cell is empty. The pictures of the results, which
`benchmarks.draw` makes, follow their table. tests/docs keeps page and results in sync.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .draw import IMAGES, PICTURES

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = ROOT / "benchmarks" / "results"
PAGE: Final = ROOT / "docs" / "performance.md"

#: A table is written between these lines.
_MARKED: Final = re.compile(
    r"(?P<start><!-- results: (?P<subject>\w+) (?P<device>\w+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL
)

#: Columns of the results to columns of the page. The case's own columns come first.
SHOWN: Final = {
    "peer": "implementation",
    "p50_ms": "ms",
    "times_faster": "times faster",
    "share": "share of the machine's bandwidth",
    "peak_mb": "peak MB",
}
#: Subjects shown as pictures only: nobody would read a table of a hundred sizes.
DRAWN_ONLY: Final = ("growth",)
#: The mode shown for a subject, if not forward plus backward: heatmaps are targets, drawn without gradients.
MODE: Final = {"heatmap": "forward"}

_FIRST_MEASURED: Final = "peer"
_ENVIRONMENT: Final = ("device", "driver", "threads", "load", "python", "torch", "cuda", "triton")


def table(subject: str, device: str) -> str:
    """Every case as Markdown; a sentence if nothing has been measured. Backends of other devices are left out."""
    path = RESULTS / f"{subject}_{device}.csv"
    if not path.is_file():
        kind = "GPU" if device == "cuda" else "CPU"
        return f"*Empty: no {kind} has run this yet. `python -m benchmarks.{subject}` on one fills it.*\n"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if subject in DRAWN_ONLY:
        return f"Medians. {_environment(rows)}\n"
    mode = MODE.get(subject, "both")
    rows = [row for row in rows if row["mode"] == mode and not row["note"].startswith("it takes C")]
    names = list(rows[0])
    case = [name for name in names[: names.index(_FIRST_MEASURED)] if len({row[name] for row in rows}) > 1]
    lines = [
        "| " + " | ".join([*case, *SHOWN.values()]) + " |",
        "|" + "---|" * (len(case) + len(SHOWN)),
        *("| " + " | ".join([*(row[name] for name in case), *_figures(row)]) + " |" for row in rows),
    ]
    words = {"both": "Forward plus backward", "forward": "Forward"}
    return f"{words[mode]}, medians. {_environment(rows)}\n\n" + "\n".join(lines) + "\n"


def _figures(row: Mapping[str, str]) -> list[str]:
    if not row["p50_ms"]:
        return [
            row["peer"],
            f"not measured: {row['note'] or 'no reason was kept'}",
            *("" for _ in range(len(SHOWN) - 2)),
        ]
    return [_cell(name, row.get(name, "")) for name in SHOWN]


def _cell(name: str, value: str) -> str:
    if not value:
        return "–"
    if name == "share":
        return f"{float(value):.0%}"
    if name in ("p50_ms", "times_faster", "peak_mb"):
        return f"{float(value):.3g}"
    return value


def _environment(rows: list[dict[str, str]]) -> str:
    """The machines and versions named in the rows."""
    said = []
    for name in _ENVIRONMENT:
        values = sorted({row.get(name, "") for row in rows} - {""})
        if name == "load" and len(values) > 1:
            values = [f"{min(values, key=float)} to {max(values, key=float)}"]
        if values:
            said.append(f"{name} {', '.join(values)}" if name != "device" else ", ".join(values))
    return "; ".join(said) + "."


def pictures(subject: str, device: str) -> dict[Path, str]:
    """The pictures of the results, each with what it shows."""
    named = {IMAGES / f"{subject}_{device}{name}.png": picture.shows for name, picture in PICTURES[subject].items()}
    return {path: shows for path, shows in named.items() if path.is_file()}


def section(subject: str, device: str) -> str:
    """A subject's table and its pictures."""
    links = [f"\n![{words}](images/{path.name})\n" for path, words in pictures(subject, device).items()]
    return table(subject, device) + "".join(links)


def written(page: str) -> str:
    """The page with its tables regenerated."""
    return _MARKED.sub(lambda m: m["start"] + section(m["subject"], m["device"]) + m["end"], page)


def main() -> None:
    if not PAGE.is_file():  # absent from an installed package
        return
    PAGE.write_text(written(PAGE.read_text()))
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

"""One self-contained HTML page about training runs: curves, confusions, alignments, and where the networks look.

    write_report(["runs/baseline", "runs/pal"], "report.html")

Pictures and charts are embedded; the page loads nothing, and suits light and dark themes, desktops and phones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pal_fast.files import write_text
from pal_fast.report.page import page
from pal_fast.report.runs import read_runs

__all__ = ["write_report"]


def write_report(runs: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Writes the page about one or more runs of `pal-fast train`, complete or in progress.

    Args:
        runs: their folders. Among runs with the same gallery faces, baselines come first in each comparison.
        output: the file; None writes report.html to the first folder.

    Returns: the file's path.

    Raises: ValueError, OSError naming the folder or file.
    """
    read = read_runs(runs)
    path = Path(output) if output is not None else read[0].folder.path / "report.html"
    if not path.parent.is_dir():
        raise FileNotFoundError(f"output: there is no folder {path.parent}")
    write_text(path, page(read))
    return path

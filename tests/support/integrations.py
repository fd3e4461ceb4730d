"""The examples in docs/integrations, read from the pages."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

FOLDER = Path(__file__).parents[2] / "docs" / "integrations"


def code_of(path: Path) -> str:
    """The only Python block of a page."""
    (code,) = re.findall(r"^```python\n(.*?)^```", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return code


def example(name: str) -> SimpleNamespace:
    names: dict[str, object] = {"__name__": name}
    exec(compile(code_of(FOLDER / f"{name}.md"), f"{name}.md", "exec"), names)
    return SimpleNamespace(**names)

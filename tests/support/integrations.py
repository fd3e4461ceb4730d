"""The examples in docs/integrations, read from the pages."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from support.code_blocks import Block, blocks_of

FOLDER = Path(__file__).parents[2] / "docs" / "integrations"


def block_of(path: Path) -> Block:
    """The only Python block of a page."""
    (block,) = (block for block in blocks_of(path) if block.language == "python")
    return block


def example(name: str) -> SimpleNamespace:
    names: dict[str, object] = {"__name__": name}
    block_of(FOLDER / f"{name}.md").run(names)
    return SimpleNamespace(**names)

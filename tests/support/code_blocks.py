"""The fenced code blocks of a Markdown page, with the HTML comments before them that control how they run.

`<!-- not run: REASON -->` before a block skips it. `<!-- before: CODE -->` is run before the block: definitions that a
reader has and the page need not show. `<!-- check: CODE -->` is run at its position: it calls what the blocks before it
define, or asserts what the text claims about them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(
    r"(?P<comments>(?:^<!--(?:(?!-->).)*-->\s*?\n\s*)*)"
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```",
    re.MULTILINE | re.DOTALL,
)
_CHECK = re.compile(r"^<!--\s*check:\s*(?P<code>.*?)\s*-->", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!--\s*(not run|before):\s*(.*?)\s*-->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int  # of the block's first line of code in its page
    language: str
    code: str
    not_run: str = ""
    before: str = ""

    @property
    def where(self) -> str:
        return f"{self.page.name}:{self.line}"

    def run(self, names: dict[str, object]) -> None:
        """Runs a Python block in `names`; a traceback shows the page's own lines."""
        exec(compile(self.before, f"{self.page} (before line {self.line})", "exec"), names)
        exec(compile("\n" * (self.line - 1) + self.code, str(self.page), "exec"), names)


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for match in _FENCE.finditer(text):
        said = dict(_COMMENT.findall(match["comments"]))
        indent = len(match["indent"])
        code = "".join(line[indent:] if line.strip() else "\n" for line in match["code"].splitlines(keepends=True))
        line = text.count("\n", 0, match.start("code")) + 1
        reason = " ".join(said.get("not run", "").split())
        found.append(Block(page, line, match["language"], code, reason, said.get("before", "")))
    return found


def runs_of(page: Path) -> list[Block]:
    """The Python blocks of a page that are run, including checks, in page order."""
    text = page.read_text()
    checks = [
        Block(page, text.count("\n", 0, match.start("code")) + 1, "python", match["code"] + "\n")
        for match in _CHECK.finditer(text)
    ]
    shown = [block for block in blocks_of(page) if block.language == "python" and not block.not_run]
    return sorted(shown + checks, key=lambda block: block.line)

"""How the site shows docstrings: the sections of this code base as lists, whatever griffe's parsers expect.

A docstring here writes `Args:`, `Attributes:`, `Returns:` and `Raises:` with their text on the same line or indented
below, and several arguments may share a line. Loaded by mkdocstrings (mkdocs.yml, extensions).
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import griffe

_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises):(.*)$")
_ENTRY = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*): (.*)$")


class Readable(griffe.Extension):
    """Rewrites each docstring as Markdown."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """The docstring with its sections as bold words and lists; code blocks and prose as they are."""
    lines, made, at = inspect.cleandoc(docstring).splitlines(), [], 0
    while at < len(lines):
        section = _SECTION.match(lines[at])
        at += 1
        if section is None:
            made.append(lines[at - 1])
            continue
        body = []
        while at < len(lines) and (not lines[at].strip() or lines[at].startswith(" ")):
            body.append(lines[at])
            at += 1
        made += ["", _section(section[1], section[2].strip(), inspect.cleandoc("\n".join(["", *body]))), ""]
    return "\n".join(made)


def _section(name: str, first: str, body: str) -> str:
    title = {"Args": "Arguments"}.get(name, name)
    if name in ("Returns", "Raises"):
        return f"**{title}** {' '.join([first, *body.split()]).strip()}"
    entries: list[str] = []
    for line in [first, *body.splitlines()]:
        entry = _ENTRY.match(line)
        if entry:
            names = ", ".join(f"`{part}`" for part in entry[1].split(", "))
            entries.append(f"- {names}: {entry[2]}")
        elif line.strip() and entries:
            entries[-1] += f" {line.strip()}"
        elif line.strip():
            entries.append(f"- {line.strip()}")
    return "\n".join([f"**{title}**", "", *entries])

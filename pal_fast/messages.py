"""Helpers for messages: short descriptions of a value, of many names and of an error, and suggestions of a name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from torch import Tensor


def describe(given: object) -> str:
    """A short description of a value of the wrong type."""
    if isinstance(given, Tensor):
        return f"a tensor of shape {tuple(given.shape)} and {given.dtype}"
    text = repr(given)
    return f"{type(given).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def first_few(names: Iterable[str], count: int = 5) -> str:
    """ "a, b, c and 12 more": the first few of many names, for one summary message."""
    listed: Sequence[str] = list(names)
    shown = ", ".join(listed[:count])
    return shown if len(listed) <= count else f"{shown} and {len(listed) - count} more"


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its type if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def near(name: str, known: Iterable[str], count: int = 5, likeness: float = 0.4) -> str:
    """ "; did you mean ...?" with the known names nearest to `name`, or an empty string."""
    matches = difflib.get_close_matches(str(name), list(dict.fromkeys(known)), n=count, cutoff=likeness)
    return f"; did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def near_layer(name: str, modules: Iterable[str]) -> str:
    """`near` among the dotted names of a model's modules; if none is near, the names at the top level."""
    named = [module for module in modules if module]
    hint = near(name, named, likeness=0.55)
    if hint or not named:
        return hint
    top = first_few((repr(module) for module in named if "." not in module), 12)
    return f"; at its top are {top} (`pal-fast doctor` lists what can be attributed)"

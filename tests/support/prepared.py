"""Shared by the tests of prepared heads: what was replaced."""

from __future__ import annotations

from torch import nn


def replaced_types(model: nn.Module) -> dict[str, type]:
    return {name: type(m) for name, m in model.named_modules() if type(m).__module__.startswith("pal_fast.nn")}

"""pal_fast as installed by pip."""

from __future__ import annotations

from importlib.metadata import Distribution, PackageNotFoundError, distribution

import pytest


def installed() -> Distribution:
    """Skips the test where the package runs from its source tree; an egg-info left by a build does not count."""
    try:
        found = distribution("pal_fast")
    except PackageNotFoundError:
        found = None
    if found is None or found.read_text("WHEEL") is None:
        pytest.skip("pal_fast runs from its source tree and is not installed")
    return found

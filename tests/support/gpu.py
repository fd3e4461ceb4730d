"""The GPU that the tests run on."""

from __future__ import annotations

import os

#: Whether it is the virtual GPU (tests/virtual_gpu), which takes a second where a GPU takes a millisecond.
VIRTUAL = "PAL_FAST_VIRTUAL_GPU" in os.environ

"""The embedded drawn faces as a data set in memory, for tests and trials without a download."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from pal_fast import _checks
from pal_fast.data.images import MemoryImages
from pal_fast.faces import EXPRESSIONS, make_faces

#: Names and defaults of the options. `test_cue` is the cue's agreement in the test split: "none" draws the badge
#: independently of the label, which exposes a network that learnt the badge instead of the face.
DEFAULTS: Final[dict[str, Any]] = {
    "count": 1000,
    "test_count": 500,
    "size": 48,
    "seed": 0,
    "cue": 0.9,
    "test_cue": "none",
    "label_noise": 0.0,
    "occlusion": 0.0,
}


def read_options(text: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options in "count=200,size=48" and keywords, over the defaults. Raises ValueError for an unknown one."""
    options = dict(DEFAULTS)
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        _checks.choice("an option of drawn", name, tuple(DEFAULTS))
        options[name] = value
    for name, value in given.items():
        _checks.choice("an option of drawn", name, tuple(DEFAULTS))
        options[name] = value
    for name, default in DEFAULTS.items():
        kind = int if isinstance(default, int) else float
        if name in ("cue", "test_cue") and options[name] in (None, "none"):
            options[name] = None
            continue
        try:
            options[name] = kind(options[name])
        except (TypeError, ValueError):
            raise ValueError(f"{name} of drawn must be a {kind.__name__}, got {options[name]!r}") from None
    return options


def draw(split: str, options: dict[str, Any]) -> tuple[MemoryImages, Tensor, Tensor, tuple[str, ...]]:
    """(images, labels, landmarks (N, 68, 2), names). Training faces have the seed 2 * seed, test faces 2 * seed + 1."""
    testing = split == "test"
    faces = make_faces(
        options["test_count" if testing else "count"],
        options["size"],
        seed=2 * options["seed"] + testing,
        cue_agreement=options["test_cue" if testing else "cue"],
        label_noise=0.0 if testing else options["label_noise"],
        occlusion=options["occlusion"],
    )
    pixels = (faces.images * 255).round_().to(torch.uint8)
    return MemoryImages(pixels), faces.labels, faces.landmarks, names_of(split, options)


def names_of(split: str, options: dict[str, Any]) -> tuple[str, ...]:
    count = options["test_count" if split == "test" else "count"]
    return tuple(f"{split}/{index:06d}" for index in range(count))


CLASSES: Final = EXPRESSIONS

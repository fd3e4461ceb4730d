"""The set-up of the study's rows, stored with them, so that rows of different set-ups are never mixed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pal_fast.faces import experiment, make_faces
from pal_fast.faces.network import FaceNet

#: Rounding differs between PyTorch releases and processors.
_TOLERANCES = {"colours": 1e-3, "landmarks": 0.02}


def set_up() -> dict[str, Any]:
    """The training constants, the network, and colours and landmarks of a few faces, occluded and not."""
    faces = make_faces(8, experiment.SIZE, seed=1, cue_agreement=experiment.CUE_AGREEMENT, occlusion=0.5)
    network = FaceNet()
    names = ("SIZE", "TEST_FACES", "TEST_SEED", "ALIGNED_FACES", "CUE_AGREEMENT", "EPOCHS", "BATCH", "LEARNING_RATE")
    return {
        **{name: getattr(experiment, name) for name in names},
        # Not the repr, which changes between PyTorch releases.
        "modules": [type(module).__name__ for module in network.modules()],
        "parameters": {name: str(tuple(value.shape)) for name, value in network.named_parameters()},
        "labels": faces.labels.tolist(),
        "colours": [round(float(value), 4) for value in faces.images.mean((2, 3)).flatten()],
        "landmarks": [round(float(value), 2) for value in faces.landmarks[:, [8, 19, 48, 54, 62]].flatten()],
    }


def difference(kept: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The keys in which two set-ups differ by more than rounding."""

    def same(name: str) -> bool:
        a, b = kept.get(name), now.get(name)
        if name in _TOLERANCES and isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            return all(abs(x - y) <= _TOLERANCES[name] for x, y in zip(a, b, strict=True))
        return bool(a == b)

    return [name for name in {**kept, **now} if not same(name)]


def claim(path: Path, *, fresh: bool) -> None:
    """Writes the set-up to `path` for a `fresh` table, or compares it with the stored one.

    Raises: RuntimeError if the table's rows were made with another or an unknown set-up.
    """
    if fresh:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(set_up(), indent=1) + "\n")
        return
    if not path.exists():
        raise RuntimeError(f"{path} is missing, so the set-up of the study's rows is unknown; start a new table")
    differing = difference(json.loads(path.read_text()), set_up())
    if differing:
        raise RuntimeError(
            f"the study's rows were made with another set-up ({', '.join(differing)} differ); start a new table"
        )

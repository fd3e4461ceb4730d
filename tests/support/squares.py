"""The smallest subject of a benchmark: the square of a matrix, by peers that are right, wrong or failing."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import harness
from benchmarks.harness import Peer, Prepared, Subject

CPU = torch.device("cpu")
SIDE = 64


@dataclass(frozen=True)
class Square:
    """x -> x^2 on a small matrix."""

    of: int = 0

    def columns(self) -> dict[str, object]:
        return {"side": SIDE}


def values(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.arange(1, SIDE * SIDE + 1, dtype=dtype).reshape(SIDE, SIDE).requires_grad_()


def peer(name: str, function: Any, **more: Any) -> Peer:
    def prepare(case: Square, device: torch.device) -> Prepared:
        x = values()
        return Prepared(lambda: function(x), (x,))

    return Peer(name, prepare, **more)


def judge(case: Square, device: torch.device) -> list[torch.Tensor]:
    x = values(torch.float64)
    y = x.square()
    return [y.detach(), *torch.autograd.grad(y, x, harness.upstream_of(y))]


def subject(*peers: Peer) -> Subject:
    return Subject(
        name="squares",
        peers=peers,
        cases=lambda device, quick: [Square()],
        judge=judge,
        bound=lambda case: 1e-5,
        traffic=lambda case, mode: 4 * SIDE * SIDE,
        work=lambda case, mode: SIDE * SIDE,
    )


def options_of(**chosen: Any) -> argparse.Namespace:
    found: dict[str, Any] = {"quick": True, "device": "cpu", "threads": None, "rounds": 1, "output": None}
    return argparse.Namespace(**(found | {"seconds": None, "without": [], "no_pictures": False} | chosen))

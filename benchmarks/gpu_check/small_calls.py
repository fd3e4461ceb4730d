"""Every kind of kernel in the package on small, odd shapes, for compute-sanitizer, which slows kernels many times over.

    compute-sanitizer --tool racecheck python -m benchmarks.gpu_check.small_calls --backend cuda

Inputs are made on the CPU, so that few kernels but the package's own are launched. Results are not checked here.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import pal_fast
from pal_fast import dispatch
from pal_fast.constants import CHANNELS
from pal_fast.nn import BatchNorm2d

#: Numbers of cells that are and are not multiples of the vector width; full heatmap tiles, and a partial one.
SHAPES = ((3, 70, 14, 14), (2, 64, 7, 7), (2, 9, 13, 11))
SIDES = (14, 64, 97)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
DTYPES = (torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class LossCall:
    """Forward and backward of the loss."""

    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    layout: torch.memory_format
    channels: str
    dense: bool

    def __call__(self, backend: str, device: torch.device) -> None:
        f, g = (_leaf(torch.randn(self.shape).to(self.dtype).to(memory_format=self.layout), device) for _ in range(2))
        prior: dict[str, Any] = {"landmarks": torch.rand(self.shape[0], 68, 2).mul(224).to(device), "image_size": 224}
        if self.dense:
            prior = {"heatmap": torch.rand(self.shape[0], *self.shape[2:]).to(device)}
        loss = pal_fast.pal_loss(f, g, channels=self.channels, backend=backend, **prior)
        torch.autograd.grad(loss, (f, g))


@dataclass(frozen=True)
class HeatmapCall:
    """Forward and backward of a heatmap."""

    side: int
    combine: str
    normalize: str

    def __call__(self, backend: str, device: torch.device) -> None:
        points = _leaf(torch.rand(3, 68, 2) * self.side, device)
        heatmap = pal_fast.landmark_heatmap(
            points, self.side, sigma=4.0, combine=self.combine, normalize=self.normalize, backend=backend
        )
        torch.autograd.grad(heatmap, points, torch.rand(heatmap.shape).to(device))


@dataclass(frozen=True)
class BatchNormCall:
    """Forward, backward and double backward; the operator chooses its own backend."""

    dtype: torch.dtype
    layout: torch.memory_format

    def __call__(self, backend: str, device: torch.device) -> None:
        layer = BatchNorm2d(9).to(device)
        x = _leaf(torch.randn(3, 9, 13, 11).to(self.dtype).to(memory_format=self.layout), device)
        y = layer(x)
        (g,) = torch.autograd.grad(y, x, torch.rand(y.shape).to(device, y.dtype), create_graph=True)
        torch.autograd.grad(g, (x, layer.weight), torch.rand(g.shape).to(device, g.dtype))


def _leaf(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device).requires_grad_()


def calls(backend: str) -> list[Any]:
    """All calls, with every kind first, so that even a short run covers them all."""
    first, *others = SHAPES
    kinds = list(itertools.product(DTYPES, LAYOUTS, CHANNELS, (False, True)))
    heatmaps = [
        HeatmapCall(side, combine, normalize)
        for side, (combine, normalize) in itertools.product(SIDES, (("sum", "none"), ("max", "peak"), ("sum", "sum")))
    ]
    norms = [BatchNormCall(dtype, layout) for dtype, layout in itertools.product(DTYPES, LAYOUTS)]
    found = [*(LossCall(first, *kind) for kind in kinds), *heatmaps, *(norms if backend != "triton" else ())]
    return [*found, *(LossCall(shape, *kind) for shape in others for kind in kinds)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check.small_calls", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--backend", default="cuda", choices=("cuda", "triton", "cpu"))
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no call after this time")
    options = parser.parse_args(arguments)
    device = torch.device("cpu" if options.backend == "cpu" else "cuda")
    reason = dispatch.why_not(options.backend, device)
    if reason:
        print(f"backend {options.backend}: {reason}")
        return 1
    torch.manual_seed(0)
    chosen, done, end = calls(options.backend), 0, time.perf_counter() + options.seconds
    for call in chosen:
        if done and time.perf_counter() > end:
            break
        call(options.backend, device)
        if device.type == "cuda":
            torch.cuda.synchronize()
        done += 1
    print(f"{done} of {len(chosen)} calls by {options.backend}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

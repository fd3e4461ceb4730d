"""Heatmaps and their gradients, for a dict of options."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import pal_fast

IMAGE = (56, 48)


def solve(
    case: dict[str, Any], points: Tensor, weights: Tensor | None, visible: Tensor | None, upstream: Tensor, backend: str
) -> list[Tensor]:
    """The heatmap and the gradients that the case requests."""
    points = points.detach().requires_grad_(case["needs"] != "weights" or weights is None)
    weights = None if weights is None else weights.detach().requires_grad_(case["needs"] != "landmarks")
    options = {name: case[name] for name in ("sigma", "combine", "normalize")}
    heatmap = pal_fast.landmark_heatmap(
        points, case["size"], image_size=IMAGE, visible=visible, weights=weights, **options, backend=backend
    )
    wanted = [tensor for tensor in (points, weights) if tensor is not None and tensor.requires_grad]
    return [heatmap.detach(), *torch.autograd.grad((heatmap * upstream).sum(), wanted)]

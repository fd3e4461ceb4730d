"""A step on a GPU equals the step on the CPU, with either backend, and the host never waits for the GPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.compare import relative_error
from support.networks import SmallNet
from torch import Tensor, nn

from pal_fast import PALLoss
from pal_fast.nn import prepare_head

pytestmark = pytest.mark.gpu

OPTIONS: list[dict[str, Any]] = [
    {},
    {"target": "label", "weight": 3.0},
    {"target": "predicted", "regions": "eyes", "combine": "max"},
    {"channels": "each", "absolute": False},
    {"channels": "half", "normalize": "peak", "score": "cross_correlation", "scale": "mean"},
    {"channels": "all", "attribution": "grad"},
    {"attribution": "activation", "reduction": "sum"},
]


@contextmanager
def synchronisation_forbidden() -> Iterator[None]:
    """Any operation that makes the host wait for the GPU raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def batch(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images of 24 x 20, labels, and landmarks: some missing, all of one face's."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(5, 3, 24, 20, generator=generator, dtype=torch.float64)
    landmarks = torch.rand(5, 68, 2, generator=generator, dtype=torch.float64) * 20
    landmarks[1, :9] = landmarks[3] = torch.nan
    return images, torch.randint(5, (5,), generator=generator), landmarks


def train(model: nn.Module, pal: PALLoss, device: str, seed: int, watched: bool) -> list[Tensor]:
    """The losses of three steps, and the weights after them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for step in range(3):
        images, labels, landmarks = (tensor.to(device) for tensor in batch(seed + step))
        logits = model(images)
        if watched and step:  # the first call synchronises to check values
            with synchronisation_forbidden():
                loss = F.cross_entropy(logits, labels) + pal(logits, landmarks, labels=labels)
        else:
            loss = F.cross_entropy(logits, labels) + pal(logits, landmarks, labels=labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach().cpu())
    return [*losses, *(parameter.detach().cpu() for parameter in model.parameters())]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("prepared", [False, True], ids=["as it is", "prepared"])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_training_on_a_gpu_equals_training_on_the_cpu(
    backend: str, prepared: bool, options: dict[str, Any], seed: int
) -> None:
    if backend == "triton":
        pytest.importorskip("triton", reason="the package triton is not installed")
    here = SmallNet().double()
    there = copy.deepcopy(here).cuda()
    wanted = train(here, PALLoss(here, "middle", backend="reference", **options), "cpu", seed, watched=False)
    if prepared:
        prepare_head(there, "middle")
    pal = PALLoss(there, "middle", backend=backend, **options)
    for value, judge in zip(train(there, pal, "cuda", seed, watched=True), wanted, strict=True):
        assert relative_error(value, judge) < 1e-8


def test_the_first_call_synchronises_to_check_values(seed: int) -> None:
    model = SmallNet().double().cuda()
    pal = PALLoss(model, "middle")
    images, _, landmarks = (tensor.cuda() for tensor in batch(seed))
    logits = model(images)
    with synchronisation_forbidden(), pytest.raises(RuntimeError, match="synchronizing"):
        pal(logits, landmarks)


def test_landmarks_on_another_device_than_the_layer_are_refused_by_name(seed: int) -> None:
    model = SmallNet().double().cuda()
    pal = PALLoss(model, "middle")
    images, _, landmarks = batch(seed)
    with pytest.raises(ValueError, match=r"landmarks .*cpu.*cuda:0|landmarks .*cuda:0.*cpu"):
        pal(model(images.cuda()), landmarks)

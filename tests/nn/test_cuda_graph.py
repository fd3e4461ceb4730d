"""The recipe of docs/performance_step.md: a whole training step in one CUDA graph equals the eager step."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pal_fast import PALLoss
from pal_fast.nn import prepare_head

pytestmark = pytest.mark.gpu(hardware=True)


def network() -> nn.Module:
    model = nn.Sequential()
    model.add_module("stem", nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))
    model.add_module("layer", nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU()))
    model.add_module("head", nn.Sequential(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3)))
    model.add_module("classifier", nn.Sequential(nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)))
    return model


def batches(count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    return [
        (torch.randn(4, 3, 24, 24).cuda(), torch.randint(5, (4,)).cuda(), (torch.rand(4, 9, 2) * 24).cuda())
        for _ in range(count)
    ]


def test_a_captured_step_gives_the_weights_of_the_eager_step() -> None:
    eager = network().cuda()
    captured = copy.deepcopy(eager)
    data = batches(8)

    def make_step(model: nn.Module, images: Tensor, labels: Tensor, landmarks: Tensor):  # type: ignore[no-untyped-def]
        prepare_head(model, "layer", images)
        pal = PALLoss(model, "layer")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

        def step() -> Tensor:
            optimizer.zero_grad(set_to_none=False)
            logits = model(images)
            loss = F.cross_entropy(logits, labels) + pal(logits, landmarks)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    static = [tensor.clone() for tensor in data[0]]
    step = make_step(captured, *static)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for batch in data[:3]:
            for target, source in zip(static, batch, strict=True):
                target.copy_(source)
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    losses = []
    for batch in data[3:]:
        for target, source in zip(static, batch, strict=True):
            target.copy_(source)
        graph.replay()
        losses.append(loss.clone())

    held = [tensor.clone() for tensor in data[0]]
    eager_step = make_step(eager, *held)
    eager_losses = []
    for batch in data:
        for target, source in zip(held, batch, strict=True):
            target.copy_(source)
        eager_losses.append(eager_step())
    torch.testing.assert_close(torch.stack(losses), torch.stack(eager_losses[3:]), rtol=1e-3, atol=1e-4)
    for (name, got), wanted in zip(captured.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4, msg=name)

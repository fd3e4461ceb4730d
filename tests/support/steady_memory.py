"""Ten thousand steps with the loss, in a separate process, whose heap is not fragmented by earlier tests.

Prints the growth over the last nine thousand: tensors held by Python, and process bytes per step.
"""

from __future__ import annotations

import gc

import psutil
import torch
from torch import nn

import pal_fast

STEPS = 9000


def main() -> None:
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh(), nn.Conv2d(2, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2))
    pal = pal_fast.PALLoss(model, "1")
    images, landmarks = torch.randn(2, 3, 6, 6), torch.rand(2, 3, 2) * 6

    def after(steps: int) -> tuple[int, int]:
        for _ in range(steps):
            model.zero_grad()
            pal(model(images), landmarks).backward()
        gc.collect()
        tensors = sum(isinstance(o, torch.Tensor) for o in gc.get_objects())
        return tensors, psutil.Process().memory_info().rss

    tensors, size = after(1000)
    more_tensors, more_size = after(STEPS)
    print(more_tensors - tensors, (more_size - size) / STEPS)


if __name__ == "__main__":
    main()

"""The names available to a page's code blocks: a model with layers like a ResNet's, a loader of annotated images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import pal_fast
import pal_fast.faces


class Model(nn.Module):
    """Stages `stem`, `layer1` ... `layer4` and a classifier, for seven classes; images of any size from 32 pixels."""

    def __init__(self) -> None:
        super().__init__()
        widths = (8, 8, 16, 16, 24)
        self.stem = self._stage(3, widths[0])
        for index in range(1, 5):
            self.add_module(f"layer{index}", self._stage(widths[index - 1], widths[index], 1 + index % 2))
        self.fc = nn.Linear(widths[-1], 7)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int = 2) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.GELU())

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for index in range(1, 5):
            x = self.get_submodule(f"layer{index}")(x)
        return self.fc(x.mean((2, 3)))


def given() -> dict[str, object]:
    """The names that a page may use without defining them."""
    model = Model()
    faces = pal_fast.faces.make_faces(8, 48, seed=1)
    loader = [tuple(t[i : i + 4] for t in (faces.images, faces.labels, faces.landmarks)) for i in (0, 4)]
    images, labels, landmarks = loader[0]
    return {
        "__name__": "page",
        "torch": torch,
        "cross_entropy": cross_entropy,
        "pal_fast": pal_fast,
        "PALLoss": pal_fast.PALLoss,
        "model": model,
        "loader": loader,
        "optimizer": torch.optim.SGD(model.parameters(), 0.01),
        "images": images,
        "labels": labels,
        "landmarks": landmarks,
    }

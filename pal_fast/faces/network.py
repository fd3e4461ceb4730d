"""The small network that the demo and the study train on the drawn faces."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from pal_fast.faces import EXPRESSIONS

#: The layer whose attribution is constrained.
LAYER: Final = "body"
HEADS: Final = ("flattened", "pooled")


class FaceNet(nn.Module):
    """Four convolutions: `body` ends in (B, 32, 12, 12) for faces of 48 x 48, `head` turns it into logits.

    Small, so that a training run takes seconds: the study makes hundreds of them.

    Args: head: "flattened" keeps the positions for its linear layer, as VGG does; "pooled" averages over them, as
    ResNets do.
    """

    def __init__(self, head: str = "flattened") -> None:
        super().__init__()
        if head not in HEADS:
            raise ValueError(f"head must be one of {HEADS}, got {head!r}")

        def block(inputs: int, outputs: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

        self.body = nn.Sequential(*block(3, 16), nn.MaxPool2d(2), *block(16, 24), nn.MaxPool2d(2), *block(24, 32))
        pool: nn.Module = nn.MaxPool2d(2) if head == "flattened" else nn.AdaptiveAvgPool2d(1)
        cells = 36 if head == "flattened" else 1
        self.head = nn.Sequential(*block(32, 32), pool, nn.Flatten(), nn.Linear(32 * cells, len(EXPRESSIONS)))
        self.to(memory_format=torch.channels_last)  # a quarter faster on a CPU

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, 48, 48) -> (B, 7)."""
        logits: Tensor = self.head(self.body(images))
        return logits

"""Random numbers as a function of the training progress, so that a resumed run draws what it would have drawn."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch.utils.data import Dataset


def derive(*parts: int | str) -> int:
    """A 63-bit seed from names and numbers; equal parts give equal seeds on every machine."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


#: (seed of the sample's augmentation, position in the epoch, index in the data set).
Key = tuple[int, int, int]


class SeededDataset(Dataset[dict[str, Any]]):
    """A data set indexed by `Key`, whose random transforms depend on the key alone.

    A sample's augmentation then does not depend on the number of loading or training processes, nor on the samples
    before it. Transforms must draw from PyTorch's CPU generator, as torchvision's do.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        seed, position, index = key
        generator = torch.default_generator
        before = generator.get_state()
        # Not torch.manual_seed, which would also reseed the GPUs.
        generator.manual_seed(derive(seed, "sample", position))
        try:
            sample: dict[str, Any] = self.dataset[index]
        finally:
            generator.set_state(before)
        return sample

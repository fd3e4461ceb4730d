"""The same validation faces at every epoch: what the network predicts for them, and where it looks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from pal_fast import landmark_heatmap
from pal_fast.capture.model_run import in_mode
from pal_fast.files import write_npz
from pal_fast.training.evaluation import image_alignment, measured_attribution
from pal_fast.training.run_folder import RunFolder


def choose(labels: Any, count: int) -> list[int]:
    """`count` indices (or all), classes in turn, spread evenly over each class; determined by the labels alone."""
    labels = np.asarray(labels)
    count = min(count, len(labels))
    places = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    queues = [list(members[np.argsort(_spread(len(members)), kind="stable")]) for members in places]
    chosen: list[int] = []
    while len(chosen) < count:
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(int(queue.pop(0)))
    return sorted(chosen)


def _spread(count: int) -> np.ndarray[Any, Any]:
    """Sort keys whose order visits 0..count-1 evenly: the bit-reversed indices (van der Corput)."""
    bits = max(1, (count - 1).bit_length())
    numbers = np.arange(count)
    return sum((numbers >> bit & 1) << (bits - 1 - bit) for bit in range(bits))  # type: ignore[return-value]


@dataclass
class Gallery:
    """The chosen faces as the network receives them.

    Attributes:
        images: (G, 3, H, W) float32, normalised.
        landmarks: (G, K, 2) float32.
        labels, indices: (G,) int64; the index in the data set.
        names: of the image files.
    """

    images: torch.Tensor
    landmarks: torch.Tensor
    labels: torch.Tensor
    indices: list[int]
    names: list[str]

    @classmethod
    def of(cls, dataset: Any, count: int) -> Gallery:
        indices = choose(dataset.labels, count)
        samples = [dataset[index] for index in indices]
        names = dataset.names
        return cls(
            torch.stack([sample["image"] for sample in samples]),
            torch.stack([torch.as_tensor(sample["landmarks"]) for sample in samples]),
            torch.tensor([int(sample["label"]) for sample in samples]),
            indices,
            [str(names[index]) for index in indices],
        )

    def write_faces(self, folder: RunFolder, pictures: torch.Tensor) -> None:
        """Args: pictures: (G, 3, H, W) float32 in [0, 1], the faces before normalisation."""
        write_npz(
            folder.gallery / "faces.npz",
            {
                "pictures": (pictures * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy(),
                "landmarks": self.landmarks.numpy(),
                "labels": self.labels.numpy(),
                "indices": np.array(self.indices),
                "names": np.array(self.names, dtype=np.str_),
            },
        )

    def look(
        self,
        network: nn.Module,
        layer: str,
        *,
        device: torch.device,
        batch: int,
        sigma: float | None,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Where the network looks now, by the attribution on which all alignments are measured.

        Returns: "maps" (G, h, w) float32; "alignment" (G,) float32, NaN where undefined; "probabilities" (G, classes).
        """
        parts: list[tuple[Any, ...]] = []
        with in_mode(network, training=False):
            for start in range(0, len(self.indices), batch):
                images = self.images[start : start + batch].to(device)
                landmarks = self.landmarks[start : start + batch].to(device)
                with autocast():
                    maps, logits = measured_attribution(network, layer, images)
                heatmap = landmark_heatmap(
                    landmarks,
                    (maps.shape[1], maps.shape[2]),
                    image_size=(images.shape[2], images.shape[3]),
                    sigma=sigma,
                )
                aligned = image_alignment(maps, heatmap) if landmarks.shape[1] else torch.full((len(maps),), torch.nan)
                parts.append((maps.float().cpu(), aligned, logits.float().softmax(1).cpu()))
        names = ("maps", "alignment", "probabilities")
        return {name: torch.cat(values).numpy() for name, values in zip(names, zip(*parts, strict=True), strict=True)}

"""The cost of landmarks in image loading: decoding and augmentation with landmarks, against the same without.

    python -m benchmarks.loading              both sizes of images
    python -m benchmarks.loading --quick      one size, seconds

Both sides decode the same JPEG files and apply the same torchvision transforms, one to images and landmarks, the
other to images only, in a data set without landmarks. They take turns in one process, as in each worker of a loader;
CPU time is measured, so that other work on the machine does not count. The ratio is the median of the rounds' ratios.
Neither side renders heatmaps, which the loss does on the device. A ratio above `LIMIT` gives status 1.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors

from pal_fast.data import open_dataset, train_transform
from pal_fast.faces import make_faces
from pal_fast.image_files import read_image
from pal_fast.landmarks import LandmarkSet

from . import machine, results_csv
from .arguments import DIRECTORY

RESULTS = DIRECTORY / "loading.csv"

#: Limit on the seconds with landmarks over the seconds without.
LIMIT = 1.10


@dataclass(frozen=True)
class Case:
    """Images of `stored` pixels on the disk, augmented to `size`."""

    stored: int
    size: int


class ImagesOnly(Dataset[tuple[torch.Tensor, int]]):
    """The pipeline as one would write it without landmarks."""

    def __init__(self, files: list[Path], labels: list[int], transform: Callable[[Any], Any]) -> None:
        self.files, self.labels, self.transform = files, labels, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = self.transform(tv_tensors.Image(read_image(self.files[index])))
        return image.as_subclass(torch.Tensor), self.labels[index]


def write_images(root: Path, count: int, stored: int) -> LandmarkSet:
    """Writes an ImageFolder of `count` faces, copies of eight drawn ones."""
    faces = make_faces(8, stored, seed=1)
    names = []
    for index in range(count):
        name = f"train/{index % 7}/{index}.jpg"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = (faces.images[index % 8] * 255).byte().permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(pixels).save(root / name, quality=92)
        names.append(name)
    return LandmarkSet(faces.landmarks[torch.arange(count) % 8], tuple(names))


def measure(case: Case, rounds: int, count: int) -> tuple[float, float, float]:
    """Median milliseconds per image without and with landmarks, and the median of the rounds' ratios."""
    with tempfile.TemporaryDirectory() as folder:
        marks = write_images(Path(folder), count, case.stored)
        transform = train_transform(case.size)
        with_landmarks = open_dataset("folder", folder, "train", landmarks=marks, transform=transform)
        files = [Path(folder) / name for name in with_landmarks.names]
        without = ImagesOnly(files, with_landmarks.labels.tolist(), transform)
        loaders = [DataLoader(of, batch_size=32) for of in (without, with_landmarks)]
        times: list[list[float]] = [[], []]
        for turn in range(rounds + 1):
            for side in (0, 1) if turn % 2 else (1, 0):
                torch.manual_seed(turn)
                start = time.process_time()
                for _ in loaders[side]:
                    pass
                if turn:
                    times[side].append((time.process_time() - start) / count * 1000)
    ratios = [b / a for a, b in zip(*times, strict=True)]
    return statistics.median(times[0]), statistics.median(times[1]), statistics.median(ratios)


def main(words: Sequence[str] | None = None) -> int:
    """Returns 1 if a ratio exceeds `LIMIT`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--images", type=int, default=64)
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    environment = machine.environment(torch.device("cpu"))  # before the measurement, for the load
    cases = [Case(100, 224)] if args.quick else [Case(100, 100), Case(100, 224), Case(224, 224)]
    rounds, count = (11, 32) if args.quick else (args.rounds, args.images)
    records: list[dict[str, object]] = []
    ratios = []
    for case in cases:
        without, with_landmarks, ratio = measure(case, rounds, count)
        print(
            f"{case.stored} px to {case.size}: {without:.2f} ms per image without landmarks, "
            f"{with_landmarks:.2f} with, ratio {ratio:.3f} (limit {LIMIT})"
        )
        ratios.append(ratio)
        records.append(
            {
                "stored": case.stored,
                "size": case.size,
                "without_ms": f"{without:.3f}",
                "with_ms": f"{with_landmarks:.3f}",
                "ratio": f"{ratio:.3f}",
                "rounds": rounds,
                "images": count,
                "torchvision": torchvision.__version__,
                **environment,
            }
        )
    if not args.quick:
        results_csv.write_rows(RESULTS, list(records[0]), records)
        print(f"written to {RESULTS}")
    over = [ratio for ratio in ratios if not ratio <= LIMIT]
    if over:
        print(f"{len(over)} of {len(ratios)} ratios are above {LIMIT}: {max(over):.3f}", file=sys.stderr)
    return int(bool(over))


if __name__ == "__main__":
    sys.exit(main())

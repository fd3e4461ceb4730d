"""One training of the study: a small network on the drawn faces, under one condition, judged on fresh faces."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pal_fast import PALLoss, attribution_map, landmark_heatmap
from pal_fast.faces import EXPRESSIONS, FaceSet, make_faces
from pal_fast.reference import standardise

SIZE: Final = 48
EPOCHS: Final = 25
BATCH: Final = 32
LEARNING_RATE: Final = 1e-3
LAYER: Final = "body"
TEST_FACES: Final = 1000
TEST_SEED: Final = 10_000
CUE_AGREEMENT: Final = 0.9
BACKEND: Final = "reference"  # the judge of all backends, so that the study does not depend on a build


@dataclass(frozen=True, order=True)
class Condition:
    """What a training is given. `prior` is where the heatmap comes from, the rest are PALLoss's options.

    Attributes:
        prior: "none" (cross-entropy alone), "landmarks", "shuffled" (another training face's landmarks, drawn
            once per face) or "random" (68 points drawn uniformly over the image, once per face).
        images: number of training faces.
        sigma: of the Gaussians, in pixels of the 48-pixel image.
        noise: share of the training labels that are wrong.
        network: "flattened" or "pooled", see `FaceNet`.
    """

    prior: str = "none"
    attribution: str = "grad_input"
    absolute: bool = True
    channels: str = "mean"
    score: str = "pearson"
    scale: str = "sum"
    weight: float = 0.0
    sigma: float = 3.0
    images: int = 350
    noise: float = 0.0
    network: str = "flattened"
    seed: int = 0

    def fields(self) -> dict[str, object]:
        return asdict(self)


class FaceNet(nn.Module):
    """Four convolutions: `body` ends in (B, 48, 12, 12), `head` turns it into logits.

    The head of the "flattened" network keeps positions, as VGG's does; that of the "pooled" one averages over them
    before its linear layer, as ResNets do.
    """

    def __init__(self, network: str = "flattened") -> None:
        super().__init__()

        def block(inputs: int, outputs: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

        self.body = nn.Sequential(*block(3, 24), nn.MaxPool2d(2), *block(24, 48), nn.MaxPool2d(2), *block(48, 48))
        pool, cells = (nn.AdaptiveAvgPool2d(1), 1) if network == "pooled" else (nn.MaxPool2d(2), 36)
        self.head = nn.Sequential(*block(48, 64), pool, nn.Flatten(), nn.Linear(64 * cells, len(EXPRESSIONS)))

    def forward(self, images: Tensor) -> Tensor:  # (B, 3, 48, 48)
        logits: Tensor = self.head(self.body(images))
        return logits


@lru_cache(maxsize=8)
def training_faces(images: int, noise: float, seed: int) -> FaceSet:
    """The badge in the background agrees with nine labels in ten."""
    return make_faces(images, SIZE, seed=seed, cue_agreement=CUE_AGREEMENT, label_noise=noise)


@lru_cache(maxsize=2)
def test_faces(occlusion: float) -> FaceSet:
    """The badge says nothing about the label; the same faces judge every run."""
    return make_faces(TEST_FACES, SIZE, seed=TEST_SEED, cue_agreement=None, occlusion=occlusion)


def prior_landmarks(kind: str, faces: FaceSet, generator: torch.Generator) -> Tensor:
    """(N, 68, 2), in pixels of the image."""
    if kind == "shuffled":
        shift = 1 + torch.randint(len(faces) - 1, (), generator=generator)
        order = torch.randperm(len(faces), generator=generator)
        other = torch.empty_like(order)
        other[order] = order.roll(int(shift))  # never the face itself
        return faces.landmarks[other]
    if kind == "random":
        return torch.rand(faces.landmarks.shape, generator=generator) * SIZE - 0.5
    return faces.landmarks


def train(condition: Condition) -> FaceNet:
    """The network after 25 epochs. The seed sets the faces, the weights, the order and the control's draws."""
    torch.manual_seed(condition.seed)
    faces = training_faces(condition.images, condition.noise, condition.seed)
    generator = torch.Generator().manual_seed(1000 + condition.seed)
    landmarks = prior_landmarks(condition.prior, faces, torch.Generator().manual_seed(2000 + condition.seed))
    model = FaceNet(condition.network)
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    pal = None
    if condition.prior != "none":
        pal = PALLoss(
            model,
            LAYER,
            attribution=condition.attribution,
            absolute=condition.absolute,
            channels=condition.channels,
            score=condition.score,
            scale=condition.scale,
            sigma=condition.sigma,
            weight=condition.weight,
            backend=BACKEND,
        )
    model.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(faces), generator=generator)
        for chosen in order.split(BATCH):
            if len(chosen) < 2:
                continue
            logits = model(faces.images[chosen])
            loss = F.cross_entropy(logits, faces.labels[chosen])
            if pal is not None:
                loss = loss + pal(logits, landmarks[chosen])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
    if pal is not None:
        pal.remove()
    return model.eval()


def attributions(model: FaceNet, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, 7) and the map of |gradient| * activation at the layer, (B, 12, 12), the same for every condition."""
    activation = model.body(images).detach().requires_grad_()
    logits = model.head(activation)
    (gradient,) = torch.autograd.grad(logits.sum(), activation)
    return logits.detach(), attribution_map(activation.detach(), gradient)


def correlation(maps: Tensor, heatmap: Tensor) -> Tensor:
    """Pearson correlation of each sample's map with its heatmap; 0 where the map is flat. (B, H, W) twice -> (B,)."""
    z, _ = standardise(maps, (1, 2))
    zh, _ = standardise(heatmap.to(maps), (1, 2))
    return (z * zh).mean((1, 2))


def judge(model: FaceNet, occlusion: float) -> tuple[float, float]:
    """Accuracy and mean alignment on the test faces."""
    faces = test_faces(occlusion)
    hits, aligned = 0, 0.0
    for start in range(0, len(faces), 200):
        part = slice(start, start + 200)
        logits, maps = attributions(model, faces.images[part])
        heatmap = landmark_heatmap(
            faces.landmarks[part], (maps.shape[1], maps.shape[2]), image_size=(SIZE, SIZE), sigma=3.0, backend=BACKEND
        )
        hits += int((logits.argmax(1) == faces.labels[part]).sum())
        aligned += float(correlation(maps, heatmap).sum())
    return hits / len(faces), aligned / len(faces)


def run(condition: Condition) -> dict[str, object]:
    """One row of the study's table."""
    torch.set_num_threads(1)
    model = train(condition)
    accuracy, alignment = judge(model, 0.0)
    occluded, _ = judge(model, 1.0)
    return condition.fields() | {
        "accuracy": round(accuracy, 5),
        "accuracy_occluded": round(occluded, 5),
        "alignment": round(alignment, 5),
    }

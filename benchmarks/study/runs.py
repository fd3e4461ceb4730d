"""One run of the study: the demo's small network on the drawn faces under one condition, tested on fresh faces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor

from pal_fast.faces import FaceSet
from pal_fast.faces.experiment import BATCH, EPOCHS, SIZE, TRAINING_FACES, fresh_faces, judge, train, training_faces

#: Face indices (B,) to their landmarks (B, K, 2), called once per step.
Draw = Callable[[Tensor], Tensor]

BACKEND: Final = "reference"  # the reference for all backends, so that the study does not depend on a build
GRID: Final = 16  # points along a side of "frame", 3 pixels apart
#: Steps of a training run on `TRAINING_FACES`. Smaller sets get more epochs, so that they are not trained less; larger
#: sets at least `FEWEST_EPOCHS`.
STEPS: Final = EPOCHS * -(-TRAINING_FACES // BATCH)
FEWEST_EPOCHS: Final = 8


@dataclass(frozen=True, order=True)
class Condition:
    """The settings of a run. `prior` is the source of the heatmap; most others are options of PALLoss.

    Attributes:
        prior: "none" (cross-entropy alone), or the source of the points, see `prior_landmarks`.
        target: of PALLoss, or "margin": the label's logit minus the mean of all logits.
        sigma: of the Gaussians, in pixels of the 48-pixel image.
        images: number of training faces.
        noise: share of the training labels that are wrong.
        scatter: how far from the centre the faces may lie, in training and test, as a share of the image's side.
        head: "flattened" or "pooled", see `FaceNet`.
    """

    prior: str = "none"
    target: str = "label"
    attribution: str = "grad_input"
    absolute: bool = True
    channels: str = "mean"
    score: str = "pearson"
    scale: str = "sum"
    weight: float = 0.0
    sigma: float = 3.0
    images: int = TRAINING_FACES
    noise: float = 0.0
    scatter: float = 0.0
    head: str = "flattened"
    seed: int = 0

    def pal_options(self) -> dict[str, Any] | None:
        """The options of PALLoss; None for cross-entropy alone."""
        if self.prior == "none":
            return None
        target: str | Callable[[Tensor, Tensor | None], Tensor] = margin if self.target == "margin" else self.target
        names = ("attribution", "absolute", "channels", "score", "scale", "weight", "sigma")
        return {name: getattr(self, name) for name in names} | {"target": target, "backend": BACKEND}


CROSS_ENTROPY: Final = Condition()
PAL: Final = Condition(prior="landmarks")
PAPER: Final = Condition(prior="landmarks", target="sum")
ALIGNMENT: Final = Condition(prior="landmarks", attribution="activation")


def margin(logits: Tensor, labels: Tensor | None) -> Tensor:
    """(B,): the label's logit minus the mean of all, the part of it to which a softmax is sensitive."""
    assert labels is not None
    return logits.gather(1, labels[:, None])[:, 0] - logits.mean(1)


@lru_cache(maxsize=4)
def _training_faces(seed: int, images: int, noise: float, scatter: float) -> FaceSet:
    return training_faces(seed, images, noise, scatter)


@lru_cache(maxsize=4)
def _fresh_faces(occlusion: float, scatter: float) -> FaceSet:
    return fresh_faces(occlusion=occlusion, scatter=scatter)


def prior_landmarks(kind: str, faces: FaceSet, sigma: float, generator: torch.Generator) -> Tensor | Draw:
    """(N, K, 2), in pixels of the image, or a function that draws the points of a batch at every step.

    - "landmarks": the faces' own; "shuffled": another training face's, drawn once per face.
    - "average": the mean landmarks of the training faces, for each of them.
    - "random": 68 points drawn uniformly over the image, once per face. Their heatmaps are dark at the edges, beyond
      which no points lie, so that their mean distinguishes the centre from the corners.
    - "even": the same density of points, drawn once per face from an area that reaches three sigmas beyond the image:
      the mean heatmap is uniform. "redrawn": the same, with new points at every step.
    - "frame": the same regular grid of points over the image for every face: the mean of "random".
    """
    count = len(faces)
    if kind == "shuffled":
        shift = 1 + torch.randint(count - 1, (), generator=generator)
        order = torch.randperm(count, generator=generator)
        other = torch.empty_like(order)
        other[order] = order.roll(int(shift))  # never the face itself
        return faces.landmarks[other]
    if kind == "average":
        return faces.landmarks.mean(0).expand_as(faces.landmarks)
    if kind == "random":
        return torch.rand(faces.landmarks.shape, generator=generator) * SIZE - 0.5
    if kind == "frame":
        steps = (torch.arange(GRID) + 0.5) * SIZE / GRID - 0.5
        return torch.cartesian_prod(steps, steps).expand(count, -1, 2)
    if kind in ("even", "redrawn"):
        margin = 3 * sigma
        points = round(faces.landmarks.shape[1] * (1 + 2 * margin / SIZE) ** 2)

        def draw(chosen: Tensor) -> Tensor:
            drawn = torch.rand(len(chosen), points, 2, generator=generator)
            return drawn * (SIZE + 2 * margin) - margin - 0.5

        return draw if kind == "redrawn" else draw(torch.arange(count))
    return faces.landmarks


def epochs_for(images: int) -> int:
    return max(FEWEST_EPOCHS, round(STEPS / -(-images // BATCH)))


def run(condition: Condition) -> dict[str, object]:
    """One row of the study's table. The seed sets the faces, the weights, the order and the random controls."""
    torch.set_num_threads(1)
    faces = _training_faces(condition.seed, condition.images, condition.noise, condition.scatter)
    draws = torch.Generator().manual_seed(2000 + condition.seed)
    model = train(
        faces,
        seed=condition.seed,
        pal=condition.pal_options(),
        landmarks=prior_landmarks(condition.prior, faces, condition.sigma, draws),
        head=condition.head,
        epochs=epochs_for(condition.images),
    )
    judged = judge(model, _fresh_faces(0.0, condition.scatter))
    occluded = judge(model, _fresh_faces(1.0, condition.scatter))
    measures = {
        "accuracy": judged.accuracy,
        "accuracy_occluded": occluded.accuracy,
        "follows_cue": judged.follows_cue,
        "alignment": judged.alignment,
        "alignment_of_sum": judged.alignment_of_sum,
    }
    return asdict(condition) | {name: round(value, 5) for name, value in measures.items()}

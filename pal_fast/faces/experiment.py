"""One training run on the drawn faces and its evaluation: the set-up that the demo and the study share.

In training, the badge in the background agrees with nine labels in ten; those of the test faces carry no information.
The face alone suffices for both, so a network that loses accuracy at the test has relied on the badge.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from pal_fast.attribution.targets import takes_labels
from pal_fast.faces import FaceSet, make_faces
from pal_fast.faces.network import LAYER, FaceNet
from pal_fast.functional import landmark_heatmap
from pal_fast.inspection import attribute
from pal_fast.loss import PALLoss
from pal_fast.reference import correlation

SIZE: Final = 48
TRAINING_FACES: Final = 350
TEST_FACES: Final = 1000
TEST_SEED: Final = 10_000  # not used by any training set
ALIGNED_FACES: Final = 200  # of the test faces; an attribution costs more than a prediction
CUE_AGREEMENT: Final = 0.9
EPOCHS: Final = 20
BATCH: Final = 32
LEARNING_RATE: Final = 1e-3


@dataclass(frozen=True)
class Judgement:
    """The results of a network on test faces.

    Attributes:
        accuracy: share of faces whose expression is predicted correctly.
        follows_cue: share of faces for which the prediction is the expression that the badge stands for; one in seven
            for a network that does not see the badge.
        alignment: mean Pearson correlation of the predicted logit's attribution, |gradient| * activation averaged
            over channels, with the landmarks' heatmap; a flat map counts as 0.
        alignment_of_sum: the same for the attribution of the sum of the logits.
    """

    accuracy: float
    follows_cue: float
    alignment: float
    alignment_of_sum: float


def training_faces(seed: int, count: int = TRAINING_FACES, label_noise: float = 0.0, scatter: float = 0.0) -> FaceSet:
    return make_faces(count, SIZE, seed=seed, cue_agreement=CUE_AGREEMENT, label_noise=label_noise, scatter=scatter)


def fresh_faces(count: int = TEST_FACES, occlusion: float = 0.0, scatter: float = 0.0) -> FaceSet:
    """Faces that no network has seen, for evaluation; the same ones for every run."""
    return make_faces(count, SIZE, seed=TEST_SEED, cue_agreement=None, occlusion=occlusion, scatter=scatter)


def train(
    faces: FaceSet,
    *,
    seed: int,
    pal: Mapping[str, Any] | None = None,
    landmarks: Tensor | Callable[[Tensor], Tensor] | None = None,
    head: str = "flattened",
    epochs: int = EPOCHS,
    after_step: Callable[[float], None] | None = None,
) -> FaceNet:
    """A `FaceNet` trained with Adam on cross-entropy, plus `PALLoss` if its options are given.

    Runs with the same seed share initial weights and the order of the faces.

    Args:
        faces: the training faces.
        pal: options of `PALLoss`, weight included; None trains with cross-entropy alone.
        landmarks: (N, K, 2) instead of the faces' own, or a function that takes the indices (B,) of a step's faces
            and returns theirs, (B, K, 2).
        after_step: called with the seconds that the step took.

    Returns: the network, in eval mode.
    """
    points = faces.landmarks if landmarks is None else landmarks
    points_of = points if callable(points) else points.__getitem__
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FaceNet(head)
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    loss_of_attribution = None if pal is None else PALLoss(model, LAYER, **pal)
    given_labels = pal is not None and takes_labels(pal.get("target", "sum"))
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(faces), generator=order).split(BATCH):
            if len(chosen) < 2:  # nothing to normalise over
                continue
            started = time.perf_counter()
            labels = faces.labels[chosen]
            logits = model(faces.images[chosen])
            loss = F.cross_entropy(logits, labels)
            if loss_of_attribution is not None:
                loss = loss + loss_of_attribution(logits, points_of(chosen), labels=labels if given_labels else None)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            if after_step is not None:
                after_step(time.perf_counter() - started)
    if loss_of_attribution is not None:
        loss_of_attribution.remove()
    return model.eval()


def judge(model: FaceNet, faces: FaceSet) -> Judgement:
    """Accuracy and the influence of the cue on `faces`, alignment on the first `ALIGNED_FACES` of them."""
    hits = follows = 0
    with torch.no_grad():
        for start in range(0, len(faces), 200):
            part = slice(start, start + 200)
            predicted = model(faces.images[part]).argmax(1)
            hits += int((predicted == faces.labels[part]).sum())
            follows += int((predicted == faces.cues[part]).sum())
    return Judgement(
        hits / len(faces), follows / len(faces), alignment(model, faces, "predicted"), alignment(model, faces, "sum")
    )


def alignment(model: FaceNet, faces: FaceSet, target: str) -> float:
    """Mean correlation of the attribution of `target` with the landmarks' heatmap, on the first `ALIGNED_FACES`."""
    part = slice(0, ALIGNED_FACES)
    maps, _ = attribute(model, LAYER, faces.images[part], target=target)
    size = (maps.shape[1], maps.shape[2])
    heatmap = landmark_heatmap(faces.landmarks[part], size, image_size=SIZE, backend="reference")
    correlations, _ = correlation(maps, heatmap.to(maps))
    return float(correlations.mean())

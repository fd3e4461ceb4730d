"""The demo: one small network, trained with cross-entropy alone and with PAL, on faces with a misleading cue.

The training faces' background gives the label away in nine cases out of ten, that of the test faces does not. All data
are drawn on the fly, and the seeds are fixed here: the demo shows their mean, not the best of them.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from pal_fast import visualize
from pal_fast.faces import EXPRESSIONS, FaceSet, make_faces
from pal_fast.faces.experiment import (
    BATCH,
    CUE_AGREEMENT,
    EPOCHS,
    SIZE,
    TEST_FACES,
    TEST_SEED,
    TRAINING_FACES,
    Judgement,
    fresh_faces,
    judge,
    train,
    training_faces,
)
from pal_fast.faces.network import LAYER, FaceNet
from pal_fast.functional import landmark_heatmap
from pal_fast.inspection import attribute

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Chosen before the demo was first run.
SEEDS: Final = (0, 1, 2)
#: The options of PALLoss that the demo uses: docs/study.md compares them with others.
PAL_OPTIONS: Final[Mapping[str, Any]] = {"weight": 10.0, "target": "label"}
METHODS: Final[Mapping[str, Mapping[str, Any] | None]] = {"cross-entropy alone": None, "with PAL": PAL_OPTIONS}

_SHOWN_SIZE: Final = 144  # pixels of a face in the picture; the same faces, drawn larger
_SEARCHED_FACES: Final = 60  # test faces that are searched for one of each expression
_GREEN, _RED = "#1a7f37", "#c62828"


@dataclass
class Outcome:
    """The results of one method, a value per seed, and its networks."""

    judgements: list[Judgement] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    models: list[FaceNet] = field(default_factory=list)

    def mean(self, measure: str) -> float:
        return statistics.fmean(getattr(judgement, measure) for judgement in self.judgements)


def run(
    *,
    seeds: Sequence[int] = SEEDS,
    faces: int = TRAINING_FACES,
    test: int = TEST_FACES,
    epochs: int = EPOCHS,
    after_step: Callable[[str, int], None] | None = None,
) -> dict[str, Outcome]:
    """Trains and evaluates both methods, seed by seed, on one thread.

    Args: after_step: called after each step with the method's name and the seed.
    """
    outcomes = {name: Outcome() for name in METHODS}
    with _one_thread():
        test_faces = fresh_faces(test)
        for seed in seeds:
            training_set = training_faces(seed, faces)
            for name, options in METHODS.items():
                outcome = outcomes[name]

                def count(seconds: float, name: str = name, seed: int = seed, outcome: Outcome = outcome) -> None:
                    outcome.step_seconds.append(seconds)
                    if after_step is not None:
                        after_step(name, seed)

                model = train(training_set, seed=seed, pal=options, epochs=epochs, after_step=count)
                outcome.models.append(model)
                outcome.judgements.append(judge(model, test_faces))
    return outcomes


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One CPU thread: the layers are too small to gain from more, and the result must not depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def steps(seeds: int, faces: int, epochs: int) -> int:
    """The number of training steps that `run` makes; a last batch of a single face is left out."""
    return seeds * len(METHODS) * epochs * (faces // BATCH + (faces % BATCH > 1))


def table(outcomes: Mapping[str, Outcome]) -> str:
    """Means over the seeds, and every seed's accuracy."""
    lines = [f"{'':21}{'test accuracy':>15}{'follows the badge':>20}{'heatmap correlation':>22}{'time per step':>16}"]
    for name, outcome in outcomes.items():
        lines.append(
            f"{name:21}{100 * outcome.mean('accuracy'):13.1f} %{100 * outcome.mean('follows_cue'):18.1f} %"
            f"{outcome.mean('alignment'):22.2f}{1e3 * statistics.median(outcome.step_seconds):13.1f} ms"
        )
    for name, outcome in outcomes.items():
        values = ", ".join(f"{100 * judgement.accuracy:.1f}" for judgement in outcome.judgements)
        lines.append(f"  {name}: test accuracy by seed {values}")
    return "\n".join(lines)


def shown_faces() -> tuple[FaceSet, FaceSet]:
    """A test face for each expression, small as the networks see it and large to look at.

    Chosen by rule: the first whose badge has another expression's colour.
    """
    small = fresh_faces(_SEARCHED_FACES)
    misled = small.labels != small.cues
    chosen = [int(((small.labels == label) & misled).nonzero()[0]) for label in range(len(EXPRESSIONS))]
    large = make_faces(max(chosen) + 1, _SHOWN_SIZE, seed=TEST_SEED, cue_agreement=None)
    return _pick(small, chosen), _pick(large, chosen)


def _pick(faces: FaceSet, chosen: Sequence[int]) -> FaceSet:
    index = torch.tensor(chosen)
    return FaceSet(
        faces.images[index], faces.labels[index], faces.landmarks[index], faces.expressions[index], faces.cues[index]
    )


def draw(outcomes: Mapping[str, Outcome]) -> Figure:
    """Faces, the landmarks' heatmap, and the attributions of the predictions of the first seed's networks."""
    with _one_thread():
        small, large = shown_faces()
    rows = {"landmark heatmap": landmark_heatmap(small.landmarks, (12, 12), image_size=SIZE)}
    captions = {"test face": [EXPRESSIONS[label] for label in small.labels]}
    colours: dict[str, list[str]] = {}
    for name, outcome in outcomes.items():
        maps, logits = attribute(outcome.models[0], LAYER, small.images, target="predicted")
        said = logits.argmax(1)
        rows[name] = maps
        captions[name] = [f"says {EXPRESSIONS[k]}" for k in said]
        colours[name] = [_GREEN if right else _RED for right in said == small.labels]
    first, second = outcomes.values()
    return visualize.attribution_grid(
        large.images,
        rows,
        landmarks=large.landmarks,
        first_row="test face",
        captions=captions,
        caption_colours=colours,
        title=(
            f"In training the badge's colour gives {CUE_AGREEMENT:.0%} of the labels away, in the test none. "
            f"Test accuracy: cross-entropy alone {first.mean('accuracy'):.0%}, with PAL {second.mean('accuracy'):.0%}"
        ),
    )


def save(outcomes: Mapping[str, Outcome], path: str | Path) -> Path:
    return visualize.save(draw(outcomes), path)

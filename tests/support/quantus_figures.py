"""Computes Quantus's results for some maps and writes them to tests/metrics/quantus.json for the tests.

Quantus depends on OpenCV and scikit-learn, so it is not in the extra `test`. Run this in an environment that has
it, from the source tree, when Quantus has changed:

    pip install quantus && PYTHONPATH=tests python -m support.quantus_figures
"""

from __future__ import annotations

import json
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

FIGURES = Path(__file__).parents[1] / "metrics" / "quantus.json"

#: Our name of each metric to Quantus's.
NAMES = {
    "pointing_game": "PointingGame",
    "relevance_rank_accuracy": "RelevanceRankAccuracy",
    "energy_pointing_game": "RelevanceMassAccuracy",
}


def judged(name: str, attribution: np.ndarray, mask: np.ndarray) -> list[float]:
    """Quantus's score of each sample, without its normalisation. attribution (B, H, W), mask (B, H, W) bool."""
    import quantus

    metric: Any = getattr(quantus, NAMES[name])(
        abs=False, normalise=False, disable_warnings=True, display_progressbar=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [float(score) for score in metric.evaluate_batch(a_batch=attribution[:, None], s_batch=mask[:, None])]


def main() -> None:
    rng = np.random.default_rng(0)
    # Positive and without ties, where their definitions and ours are the same.
    attribution = (1 + rng.permuted(np.tile(np.arange(30), (10, 1)), axis=1)).reshape(10, 5, 6) / 32
    mask = rng.random((10, 5, 6)) < 0.3
    mask[:, 0, 0], mask[:, 0, 1] = True, False
    flat = np.zeros((1, 5, 6), bool)
    content = {
        "quantus": version("quantus"),
        "attribution": attribution.tolist(),
        "mask": mask.astype(int).tolist(),
        "scores": {name: judged(name, attribution, mask) for name in NAMES},
        "score_of_an_empty_mask": {name: str(judged(name, attribution[:1], flat)[0]) for name in NAMES},
    }
    FIGURES.write_text(json.dumps(content) + "\n")
    print({name: content["scores"][name] for name in NAMES}, content["score_of_an_empty_mask"])


if __name__ == "__main__":
    main()

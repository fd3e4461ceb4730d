"""Every function of the programming interface refuses a wrong argument by name.

The loss, the heatmap and the attribution map are in `tests/functional` and `tests/loss`, the training in
`tests/training`. Colours and the network's inputs are left to matplotlib and to the network.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.junk import unnamed
from torch import nn

pytest.importorskip("matplotlib")
pytest.importorskip("torchmetrics")
pytest.importorskip("torchvision")

from matplotlib.figure import Figure

from pal_fast import compiled, data, explain, faces, landmarks, metrics, visualize
from pal_fast.landmarks import LandmarkSet
from pal_fast.nn import convert_sync_batchnorm, prepare_head, replace_hardsigmoid

DRAWN = faces.make_faces(6, 32, seed=1)
NAMES = tuple("abcdef")
MARKS = LandmarkSet(DRAWN.landmarks, NAMES)
MAP = torch.rand(4, 4)
THIRDS = {"mean": (0.3, 0.3, 0.3), "std": (0.3, 0.3, 0.3)}
DATASET = data.FaceDataset(DRAWN.images, DRAWN.labels, faces.EXPRESSIONS)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    ).eval()


def explanation() -> explain.Explanation:
    return explain.Explanation(DRAWN.images[0], DRAWN.landmarks[0], MAP, MAP, torch.ones(3) / 3, 0.5)


def draw_landmarks(**given: Any) -> None:
    axes = Figure().add_axes((0, 0, 1, 1))
    axes.imshow(np.zeros((4, 4)))
    visualize.draw_landmarks(axes, **given)


#: The call, and arguments that are valid.
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "PointingGame": (metrics.PointingGame, {"mask_threshold": 0.5}),
    "RelevanceRankAccuracy": (metrics.RelevanceRankAccuracy, {"mask_threshold": 0.5}),
    "IntersectionOverUnion": (metrics.IntersectionOverUnion, {"threshold": 0.5, "mask_threshold": 0.5}),
    "update": (metrics.PearsonCorrelation().update, {"attribution": MAP[None], "heatmap": MAP[None]}),
    "picture": (visualize.picture, {"image": DRAWN.images[0]}),
    "colour_map": (visualize.colour_map, {"values": MAP, "limits": None}),
    "overlay": (visualize.overlay, {"image": DRAWN.images[0], "values": MAP, "opacity": 0.5, "limits": None}),
    "unnormalise": (visualize.unnormalise, {"images": DRAWN.images, **THIRDS}),
    "draw_landmarks": (draw_landmarks, {"landmarks": DRAWN.landmarks[0], "visible": None, "size": 3.0}),
    "attribution_grid": (
        visualize.attribution_grid,
        {"images": DRAWN.images[:2], "maps": {"m": MAP.expand(2, 4, 4)}, "landmarks": DRAWN.landmarks[:2]}
        | {"first_row": "image", "captions": None, "caption_colours": None, "title": None, "cell": 1.0},
    ),
    "panels": (
        visualize.panels,
        {"image": DRAWN.images[0], "maps": {"m": MAP}, "landmarks": None, "first": "image", "title": None, "cell": 1.0},
    ),
    "save": (visualize.save, {"figure": Figure(), "path": "a"}),
    "guess_format": (landmarks.guess_format, {"path": "none"}),
    "read_landmarks": (landmarks.read_landmarks, {"path": "none", "format": None}),
    "read_landmark_set": (landmarks.read_landmark_set, {"path": "none", "format": None}),
    "write_landmarks": (landmarks.write_landmarks, {"path": "a", "landmarks": MARKS, "format": None}),
    "renumber_mirrored": (landmarks.renumber_mirrored, {"points": DRAWN.landmarks}),
    "to_68_points": (landmarks.to_68_points, {"points": DRAWN.landmarks}),
    "fit_similarity": (landmarks.fit_similarity, {"source": torch.rand(3, 2), "target": torch.rand(3, 2)}),
    "transform_points": (landmarks.transform_points, {"points": torch.rand(3, 2), "matrix": torch.rand(2, 3)}),
    "merge": (landmarks.merge, {"sets": [MARKS]}),
    "LandmarkSet": (LandmarkSet, {"points": MARKS.points, "names": NAMES, "scores": None, "digests": None}),
    "find": (MARKS.find, {"names": NAMES}),
    "select": (MARKS.select, {"rows": [0]}),
    "LandmarkSet.save": (MARKS.save, {"path": "a"}),
    "open_dataset": (
        functools.partial(data.open_dataset, "drawn", "count=7,size=16"),
        {"split": "train", "landmarks": None, "format": None, "classes": None},
    ),
    "open_dataset of files": (data.open_dataset, {"name": "folder", "root": "none", "split": "train"}),
    "FaceDataset": (
        data.FaceDataset,
        {"images": DRAWN.images, "labels": DRAWN.labels, "classes": faces.EXPRESSIONS, "names": NAMES}
        | {"landmarks": DRAWN.landmarks, "transform": None},
    ),
    "class_balanced_sampler": (data.class_balanced_sampler, {"dataset": DATASET}),
    "train_transform": (
        data.train_transform,
        {"size": 32, "flip": 0.5, "degrees": 10, "scale": (0.8, 1.0), "ratio": (0.9, 1.1), "colour": 0.2, "erase": 0.0}
        | THIRDS,
    ),
    "eval_transform": (data.eval_transform, {"size": 32, **THIRDS}),
    "make_faces": (
        faces.make_faces,
        {"count": 2, "size": 32, "seed": 0, "cue_agreement": 0.5, "label_noise": 0.0, "occlusion": 0.0, "scatter": 0.0},
    ),
    "explain": (
        explain.explain,
        {"image": (DRAWN.images[0] * 255).byte(), "landmarks": DRAWN.landmarks[0], "network": network(), "layer": "0"}
        | {"size": 32, "crop": "face", "target": "predicted", "attribution": "grad_input", "sigma": 2.0, **THIRDS},
    ),
    "draw": (explain.draw, {"explanation": explanation(), "title": "title"}),
    "replace_hardsigmoid": (replace_hardsigmoid, {"model": network()}),
    "convert_sync_batchnorm": (convert_sync_batchnorm, {"module": network()}),
    "prepare_head": (prepare_head, {"model": network(), "layer": "0"}),
    "compile_step": (compiled.compile_step, {"step": None}),
}
CASES = [(function, argument) for function, (_, given) in CALLS.items() for argument in given]


@pytest.mark.parametrize(("function", "argument"), CASES)
def test_a_wrong_argument_is_named(function: str, argument: str) -> None:
    call, given = CALLS[function]
    assert not unnamed(call, given, argument)


@pytest.mark.parametrize("module", [visualize, landmarks, data, faces])
def test_every_function_of_the_interface_is_tested_here(module: Any) -> None:
    functions = {name for name in module.__all__ if inspect.isfunction(getattr(module, name))}
    assert functions <= set(CALLS)


@pytest.mark.parametrize(
    ("function", "changed", "message"),
    [
        ("attribution_grid", {"landmarks": DRAWN.landmarks[:1]}, r"landmarks must have shape \(2, K, 2\), got \(1, 68"),
        (
            "draw_landmarks",
            {"visible": torch.ones(3, dtype=torch.bool)},
            r"visible must have shape \(68,\), got \(3,\)",
        ),
        ("fit_similarity", {"target": torch.rand(4, 2)}, "source and target must hold the same number of points"),
        ("LandmarkSet", {"digests": ("a",)}, "digests must hold 6 strings, one for each image, got 1"),
        ("FaceDataset", {"labels": torch.full((6,), 7)}, "labels must be from 0 to 6"),
    ],
)
def test_arguments_of_different_lengths_are_refused(function: str, changed: dict[str, Any], message: str) -> None:
    call, given = CALLS[function]
    with pytest.raises(ValueError, match=message):
        call(**{**given, **changed})


def test_regions_that_are_no_names_are_refused() -> None:
    from pal_fast import PALLoss

    with pytest.raises(TypeError, match="regions must be one of"):
        PALLoss(network(), "0", regions=[["eyes"]])  # type: ignore[list-item]


def test_an_attribution_ignores_the_tensor_that_it_does_not_use() -> None:
    from pal_fast import pal_loss

    layer = torch.rand(2, 3, 4, 4)
    prior = MAP.expand(2, 4, 4)
    for other in (None, "x", torch.rand(3)):
        found = pal_loss(other, layer, prior, attribution="grad")  # type: ignore[arg-type]
        assert found == pal_loss(None, layer, prior, attribution="grad")

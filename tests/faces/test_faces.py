"""The drawn faces: landmarks match the image, expressions differ, the cue is as stated, a seed fixes every bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pal_fast.faces import CUE_COLOURS, EXPRESSIONS, make_faces


def colour_at(images: Tensor, points: Tensor) -> Tensor:
    """(N, K, 3): the pixel nearest to each point (N, K, 2)."""
    size = images.shape[-1]
    index = points.round().long().clamp(0, size - 1)
    batch = torch.arange(images.shape[0])[:, None]
    return images[batch, :, index[..., 1], index[..., 0]]


def test_shapes_and_types_are_as_documented(seed: int) -> None:
    faces = make_faces(9, 40, seed=seed)
    assert faces.images.shape == (9, 3, 40, 40)
    assert faces.landmarks.shape == (9, 68, 2)
    assert faces.images.dtype == faces.landmarks.dtype == torch.float32
    assert faces.labels.dtype == torch.int64
    assert len(faces) == 9
    assert float(faces.images.min()) >= 0
    assert float(faces.images.max()) <= 1


def test_a_count_of_zero_gives_an_empty_set() -> None:
    assert make_faces(0).images.shape == (0, 3, 48, 48)


def test_a_seed_gives_the_same_bits(seed: int) -> None:
    first, second = make_faces(20, seed=seed), make_faces(20, seed=seed)
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.landmarks, second.landmarks)


def test_a_longer_set_begins_with_the_shorter_one(seed: int) -> None:
    # 64 faces are painted at once, so both sets end in a different batch.
    few, many = make_faces(10, seed=seed), make_faces(70, seed=seed)
    assert torch.equal(few.labels, many.labels[:10])
    torch.testing.assert_close(few.images, many.images[:10], rtol=0, atol=1e-5)


def test_a_seed_gives_the_same_faces_at_every_size(seed: int) -> None:
    small, large = make_faces(20, 48, seed=seed), make_faces(20, 144, seed=seed)
    assert torch.equal(small.labels, large.labels)
    torch.testing.assert_close((small.landmarks + 0.5) * 3, large.landmarks + 0.5, rtol=0, atol=1e-2)
    shrunk = torch.nn.functional.avg_pool2d(large.images, 3)
    assert float((shrunk - small.images).abs().mean()) < 0.05


def test_faces_lie_inside_the_image(seed: int) -> None:
    landmarks = make_faces(200, 48, seed=seed).landmarks
    inside = ((landmarks > -0.5) & (landmarks < 47.5)).all(-1)
    assert float(inside.float().mean()) > 0.99


def test_eye_landmarks_surround_a_dark_iris(seed: int) -> None:
    """The centre of an open eye's six landmarks is the dark pupil or its rim; the cheek below is skin."""
    faces = make_faces(200, 96, seed=seed)
    surprised = faces.expressions == EXPRESSIONS.index("surprise")
    images, points = faces.images[surprised], faces.landmarks[surprised]
    for first in (36, 42):
        middle = points[:, first : first + 6].mean(1, keepdim=True)
        below = middle + 2.2 * (points[:, [first + 4]] - points[:, [first + 1]])
        darker = colour_at(images, middle).mean((1, 2)) < colour_at(images, below).mean((1, 2))
        assert float(darker.float().mean()) > 0.7


def test_mouth_landmarks_lie_on_lips(seed: int) -> None:
    """Halfway between the outer and the inner lip line, the colour is redder than the skin of the cheek."""
    faces = make_faces(100, 96, seed=seed)
    p = faces.landmarks
    lower_lip = (p[:, 56:59] + p[:, 65:68]) / 2  # 56-65, 57-66, 58-67
    cheek = (p[:, [2, 14]] + p[:, [31, 35]]) / 2

    def redness(colour: Tensor) -> Tensor:
        return (colour[..., 0] / (colour[..., 1] + 0.02)).mean(1)

    redder = redness(colour_at(faces.images, lower_lip)) > redness(colour_at(faces.images, cheek))
    assert float(redder.float().mean()) > 0.85


def test_brow_landmarks_lie_on_hair(seed: int) -> None:
    """A brow's centre is darker than the skin halfway to the eye (on fair skin, where the contrast is certain)."""
    faces = make_faces(80, 96, seed=seed)
    p = faces.landmarks
    brow = colour_at(faces.images, p[:, [19, 24]]).mean((1, 2))
    forehead = colour_at(faces.images, (p[:, [20]] + p[:, [23]]) / 2).mean((1, 2))
    lid = colour_at(faces.images, (p[:, [19, 24]] * 0.55 + p[:, [37, 44]] * 0.45)).mean((1, 2))
    fair = forehead > 0.45
    assert float((brow < lid)[fair].float().mean()) > 0.85


def test_the_jaw_is_the_edge_of_the_face(seed: int) -> None:
    """The colour changes across the jaw line: outside it lie wall, hair, ear or neck."""
    faces = make_faces(60, 96, seed=seed)
    p = faces.landmarks
    nose = p[:, [30]]
    side = p[:, [3, 4, 12, 13]]
    outside = colour_at(faces.images, side + 0.10 * (side - nose))
    inside = colour_at(faces.images, side - 0.10 * (side - nose))
    change = (outside - inside).abs().sum(-1)
    assert float((change > 0.06).float().mean()) > 0.9


def test_landmarks_distinguish_the_expressions(seed: int) -> None:
    """A linear classifier on aligned landmarks gets over 90% right on new faces."""

    def features(landmarks: Tensor) -> Tensor:
        """(N, 137): landmarks with the eye line's rotation, position and size removed, and a constant."""
        left, right = landmarks[:, 36:42].mean(1), landmarks[:, 42:48].mean(1)
        axis = torch.view_as_complex((right - left).contiguous())
        points = torch.view_as_complex((landmarks - ((left + right) / 2)[:, None]).contiguous())
        aligned = torch.view_as_real(points / axis[:, None]).flatten(1)
        return torch.cat([aligned, torch.ones(len(aligned), 1)], 1).double()

    train, test = make_faces(1200, 16, seed=seed), make_faces(600, 16, seed=seed + 1)
    x, target = features(train.landmarks), torch.nn.functional.one_hot(train.labels, 7).double()
    weights = torch.linalg.solve(x.T @ x + 1e-3 * torch.eye(x.shape[1], dtype=x.dtype), x.T @ target)
    accuracy = ((features(test.landmarks) @ weights).argmax(1) == test.labels).double().mean()
    assert float(accuracy) > 0.9


@pytest.mark.parametrize("agreement", [0.0, 0.5, 0.9, 1.0])
def test_the_cue_agrees_as_often_as_asked(agreement: float, seed: int) -> None:
    faces = make_faces(2000, 16, seed=seed, cue_agreement=agreement)
    share = float((faces.cues == faces.labels).double().mean())
    assert share == pytest.approx(agreement, abs=5 * (0.25 / 2000) ** 0.5)
    assert share == agreement or 0 < agreement < 1


def test_without_agreement_the_cue_is_independent(seed: int) -> None:
    faces = make_faces(2000, 16, seed=seed, cue_agreement=None)
    table = torch.zeros(7, 7, dtype=torch.float64)
    table.index_put_((faces.labels, faces.cues), torch.ones(2000, dtype=torch.float64), accumulate=True)
    expected = table.sum(1, keepdim=True) * table.sum(0, keepdim=True) / 2000
    statistic = float(((table - expected) ** 2 / expected).sum())
    assert statistic < 86  # chi-square with 36 degrees of freedom: exceeded with probability 1 / 200,000


def test_the_badge_has_the_colour_of_the_cue(seed: int) -> None:
    """The cue can be read from the image: its colour fills pixels in one of the corners."""
    faces = make_faces(200, 64, seed=seed)
    colours = torch.tensor(CUE_COLOURS)
    hue = colours / colours.norm(dim=1, keepdim=True)
    corners = torch.cat([faces.images[:, :, :14], faces.images[:, :, -14:]], 2)
    corners = torch.cat([corners[..., :14], corners[..., -14:]], 3).flatten(2)  # (N, 3, P)
    direction = corners / corners.norm(dim=1, keepdim=True).clamp_min(1e-3)
    match = (torch.einsum("kc,ncp->nkp", hue, direction) > 0.985).sum(2)
    assert float((match.argmax(1) == faces.cues).double().mean()) > 0.8


def test_label_noise_changes_the_label_and_not_the_face(seed: int) -> None:
    clean = make_faces(2000, 16, seed=seed)
    noisy = make_faces(2000, 16, seed=seed, label_noise=0.3)
    assert torch.equal(clean.expressions, noisy.expressions)
    assert torch.equal(clean.landmarks, noisy.landmarks)
    assert float((noisy.labels != noisy.expressions).double().mean()) == pytest.approx(0.3, abs=0.055)
    assert float((noisy.cues == noisy.labels).double().mean()) == pytest.approx(0.9, abs=0.04)


def test_occlusion_covers_part_of_the_face_and_keeps_the_landmarks(seed: int) -> None:
    clear, covered = make_faces(40, 48, seed=seed), make_faces(40, 48, seed=seed, occlusion=1.0)
    assert torch.equal(clear.landmarks, covered.landmarks)
    changed = ((clear.images - covered.images).abs().sum(1) > 0).double().mean((1, 2))
    assert float(changed.min()) > 0.005
    assert float(changed.max()) < 0.35


def test_scatter_moves_faces_and_their_landmarks_together(seed: int) -> None:
    still, moved = make_faces(60, 64, seed=seed), make_faces(60, 64, seed=seed, scatter=0.2)
    shift = (moved.landmarks - still.landmarks)[:, 0]
    torch.testing.assert_close(moved.landmarks - shift[:, None], still.landmarks, rtol=0, atol=1e-3)
    assert 0.8 * 12.8 < float(shift.abs().max()) <= 12.8
    assert torch.equal(moved.cues, still.cues)
    noses = (
        colour_at(moved.images, moved.landmarks[:, [30]]) - colour_at(still.images, still.landmarks[:, [30]])
    ).abs()
    assert float(noses.mean()) < 0.1  # noise and rounding to pixels; the skin's colour is the same


def test_expressions_are_equally_frequent(seed: int) -> None:
    counts = make_faces(3500, 16, seed=seed).labels.bincount(minlength=7)
    assert int((counts - 500).abs().max()) < 5 * 500**0.5


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"count": -1}, "count"),
        ({"size": 8}, "size"),
        ({"seed": -3}, "seed"),
        ({"cue_agreement": 1.5}, "cue_agreement"),
        ({"cue_agreement": float("nan")}, "cue_agreement"),
        ({"label_noise": -0.1}, "label_noise"),
        ({"occlusion": 2.0}, "occlusion"),
        ({"scatter": 0.6}, "scatter"),
    ],
)
def test_a_bad_argument_is_named_in_the_error(arguments: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make_faces(**{"count": 2, **arguments})  # type: ignore[arg-type]

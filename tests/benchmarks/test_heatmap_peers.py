"""The reimplemented heatmaps of other libraries follow those libraries' definitions, including at the border."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.compare import relative_error

from benchmarks import heatmap_peers as peers


@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0])
def test_mmpose_draws_a_gaussian_truncated_at_three_sigma_around_the_rounded_landmark(generator, sigma):
    points = torch.rand(3, 8, 2, generator=generator) * 60 - 8
    points = points.clamp(min=0)  # the library rounds negative coordinates towards 0
    drawn = torch.from_numpy(peers.mmpose_heatmap(points.numpy(), (30, 37), sigma))
    assert relative_error(drawn, peers.mmpose_judge(points, (30, 37), sigma)) < 1e-6


def test_face_alignment_uses_a_quarter_of_its_patch_as_sigma_and_counts_from_one(generator):
    points = torch.rand(2, 3, 2, generator=generator) * 10 + 20
    drawn = torch.from_numpy(peers.face_alignment_heatmap(points.numpy(), (50, 52), 3.0))
    assert relative_error(drawn, peers.face_alignment_judge(points, (50, 52), 3.0)) < 1e-6
    alone = peers.face_alignment_heatmap(np.array([[[20.0, 30.0]]]), (50, 52), 3.0)[0]
    assert np.unravel_index(alone.argmax(), alone.shape) == (29, 19)
    assert alone.max() == 1


def test_the_reimplementation_equals_the_face_alignment_package(generator):
    utils = pytest.importorskip("face_alignment.utils", exc_type=ImportError)
    points = torch.rand(2, 68, 2, generator=generator) * 55 + 8  # including the right and lower borders
    package = np.zeros((2, 68, 60, 58), dtype=np.float32)
    for b, k in np.ndindex(2, 68):
        package[b, k] = utils.draw_gaussian(package[b, k], points[b, k].numpy(), 2)
    assert package.any((2, 3)).all()
    drawn = peers.face_alignment_heatmap(points.numpy(), (60, 58), 2.0)
    np.testing.assert_allclose(drawn, package.sum(1), atol=1e-6)


def test_kornia_is_checked_with_its_own_normalisation_or_reported_as_missing(generator):
    points = (torch.rand(2, 5, 2, generator=generator) * 20).requires_grad_()
    judge = peers.kornia_judge(points, (20, 21), 2.0)
    assert torch.allclose(judge[0].sum((1, 2)), torch.tensor(5.0, dtype=torch.float64))
    try:
        import kornia  # noqa: F401
    except ImportError:
        with pytest.raises(peers.UnavailableError, match=r"pip install 'pal_fast\[bench\]'"):
            peers.kornia_heatmap(points, (20, 21), 2.0)
        return
    assert relative_error(peers.kornia_heatmap(points, (20, 21), 2.0).forward(), judge[0]) < 1e-5

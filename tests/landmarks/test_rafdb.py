"""RAF-DB's annotation: file formats, the similarity transform to the aligned images and the measured template."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pal_fast import cli
from pal_fast.landmarks import LandmarkFileError, fit_similarity, read_landmark_set, transform_points
from pal_fast.landmarks.geometry import invert
from pal_fast.landmarks.rafdb import TEMPLATE, aligned_transform, anchors, read_aligned, read_box, read_manual

pytest.importorskip("PIL")

from support import drawn_datasets
from support.drawn_datasets import Written

#: Differs from the assumed template, so that measuring it is a real test.
TRUE_TEMPLATE = ((25.0, 33.0), (74.0, 36.0), (52.0, 75.0))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return drawn_datasets.write_rafdb(tmp_path_factory.mktemp("rafdb"), 12, 4, seed=9, template=TRUE_TEMPLATE)


def test_manual_annotation_files_hold_five_points(written: Written) -> None:
    assert read_manual(written.root / "Annotation" / "manual" / "train_00005_manu_attri.txt").shape == (5, 2)


def test_boxes_are_left_top_right_bottom(written: Written, tmp_path: Path) -> None:
    left, top, right, bottom = read_box(written.root / "Annotation" / "boundingbox" / "test_0001_boundingbox.txt")
    auto = read_landmark_set(written.root / "Annotation" / "auto")
    points = auto.points[auto.names.index("test_0001")]
    assert points[:, 0].min() >= left - 0.01
    assert points[:, 1].max() <= bottom + 0.01
    assert right > left
    assert bottom > top
    (tmp_path / "x_boundingbox.txt").write_text("5 5 3 9\n")
    with pytest.raises(LandmarkFileError, match="left top right bottom"):
        read_box(tmp_path / "x_boundingbox.txt")


def test_a_similarity_is_recovered_from_point_pairs_and_inverted(generator: torch.Generator) -> None:
    points = torch.rand(4, 7, 2, generator=generator, dtype=torch.float64) * 100
    angle, scale = torch.rand(4, generator=generator, dtype=torch.float64) * 6, 0.3
    shift = torch.rand(4, 2, generator=generator, dtype=torch.float64) * 50
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()], -1), torch.stack([angle.sin(), angle.cos()], -1)], -2)
    matrix = torch.cat([scale * turn, shift[..., None]], -1)
    moved = transform_points(points, matrix)
    torch.testing.assert_close(fit_similarity(points, moved), matrix)
    torch.testing.assert_close(transform_points(moved, invert(matrix)), points)


def test_the_fitted_similarity_is_the_least_squares_fit(generator: torch.Generator) -> None:
    """Where no similarity fits exactly, no similarity near the fitted one has a smaller error."""
    source, target = torch.rand(2, 3, 2, generator=generator, dtype=torch.float64) * 100
    best = fit_similarity(source, target)

    def error(a: float, b: float, x: float, y: float) -> float:
        matrix = torch.tensor([[a, -b, x], [b, a, y]], dtype=torch.float64)
        return float((transform_points(source, matrix) - target).square().sum())

    found = (float(best[0, 0]), float(best[1, 0]), float(best[0, 2]), float(best[1, 2]))
    for step in ((0.01, 0, 0, 0), (0, 0.01, 0, 0), (0, 0, 0.5, 0), (0, 0, 0, 0.5)):
        for sign in (1, -1):
            assert error(*(f + sign * s for f, s in zip(found, step, strict=True))) > error(*found)


def test_points_land_in_the_aligned_image(written: Written) -> None:
    names = [Path(name).name for name in written.names]
    points = read_aligned(written.root / "Annotation", names, template=torch.tensor(TRUE_TEMPLATE))
    torch.testing.assert_close(points, written.landmarks[:, :37], rtol=0, atol=2e-3)
    manual = read_aligned(written.root / "Annotation", names, "manual", template=torch.tensor(TRUE_TEMPLATE))
    # A similarity cannot match all three points, but it matches their mean.
    torch.testing.assert_close(anchors(manual).mean(1), torch.tensor(TRUE_TEMPLATE).mean(0).expand(len(names), 2))


def test_a_face_of_the_assumed_templates_shape_lands_on_the_template() -> None:
    left, right, mouth = torch.tensor(TEMPLATE)
    face = torch.stack([left, right, (left + right + mouth) / 3, mouth - 12, mouth + 12])
    matrix = aligned_transform(face * 3 + 20)
    torch.testing.assert_close(transform_points(face * 3 + 20, matrix), face)


def test_the_template_is_measured_from_the_images(written: Written, tmp_path: Path) -> None:
    from pal_fast.landmarks.rafdb_template import measure_template

    measured = measure_template(written.root, 12)
    assert measured.correlation > 0.97
    names = [Path(name).name for name in written.names]
    points = read_aligned(written.root / "Annotation", names, template=measured.template)
    assert (points - written.landmarks[:, :37]).norm(dim=-1).mean() < 0.25
    assumed = read_aligned(written.root / "Annotation", names)
    assert (assumed - written.landmarks[:, :37]).norm(dim=-1).mean() > 1
    with pytest.raises(FileNotFoundError, match="Image/original"):
        measure_template(tmp_path)


def test_convert_maps_the_annotation_into_the_aligned_images(
    written: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "aligned.npz"
    assert cli.main(["convert", str(written.root), "-o", str(output), "--aligned", "assumed"]) == 0
    assert "16 images, 37 landmarks each" in capsys.readouterr().out
    marks = read_landmark_set(output)
    rows = marks.find(written.names)
    assert rows.min() >= 0
    wanted = read_aligned(written.root / "Annotation", [Path(name).name for name in written.names])
    torch.testing.assert_close(marks.points[rows], wanted)


def test_missing_annotation_files_are_reported_in_one_summary(written: Written) -> None:
    with pytest.raises(FileNotFoundError, match=r"2 images have no .*: test_0098, test_0099"):
        read_aligned(written.root / "Annotation", ["test_0001.jpg", "test_0098.jpg", "test_0099.jpg"])

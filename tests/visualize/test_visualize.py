"""Pictures: maps are placed as the heatmaps are, landmarks on their pixels, and colours mean what is documented."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pal_fast import landmark_heatmap
from pal_fast.visualize import attribution_grid, colour_map, draw_landmarks, overlay, picture, save, unnormalise


def test_tensors_arrays_and_bytes_give_the_same_picture(generator: torch.Generator) -> None:
    levels = torch.randint(0, 256, (3, 5, 7), generator=generator, dtype=torch.uint8)
    as_floats = picture(levels.float() / 255)
    assert as_floats.shape == (5, 7, 3)
    np.testing.assert_allclose(picture(levels), as_floats, atol=1e-6)
    np.testing.assert_allclose(picture(levels.permute(1, 2, 0).numpy()), as_floats, atol=1e-6)
    np.testing.assert_allclose(picture((levels / 255).bfloat16()), as_floats, atol=2**-8)


def test_a_grey_picture_gets_three_channels(generator: torch.Generator) -> None:
    grey = torch.rand(4, 6, generator=generator)
    assert picture(grey.numpy()).shape == picture(grey[None]).shape == (4, 6, 3)


@pytest.mark.parametrize("image", [torch.zeros(2, 5, 5), torch.full((3, 4, 4), 2.0), torch.full((3, 4, 4), torch.nan)])
def test_tensors_that_are_not_pictures_are_refused(image: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="image must"):
        picture(image)


def test_unnormalise_undoes_a_normalisation(generator: torch.Generator) -> None:
    images = torch.rand(2, 3, 4, 5, generator=generator)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    normalised = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(unnormalise(normalised, mean, std), images, rtol=0, atol=1e-5)


def test_the_brightest_pixel_of_an_overlay_is_the_landmark() -> None:
    """A map at a quarter of the resolution is drawn over the landmark that it was made from."""
    point = torch.tensor([[[41.0, 17.0]]])
    heatmap = landmark_heatmap(point, 14, image_size=56, sigma=4.0, backend="reference")
    shown = overlay(torch.full((3, 56, 56), 0.3), heatmap[0])
    row, column = np.unravel_index(shown.sum(2).argmax(), (56, 56))
    assert abs(row - 17) <= 2
    assert abs(column - 41) <= 2


def test_a_flat_map_and_no_opacity_show_the_grey_image(generator: torch.Generator) -> None:
    image = torch.rand(3, 8, 8, generator=generator)
    bare = overlay(image, torch.rand(4, 4, generator=generator), opacity=0.0)
    np.testing.assert_array_equal(overlay(image, torch.full((4, 4), 3.0)), bare)
    assert bare.dtype == np.float32


def test_shared_limits_give_equal_values_the_same_colour() -> None:
    few, many = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 2.0]])
    own, shared = colour_map(few), colour_map(few, limits=(0.0, 2.0))
    assert own[0, 1, 3] == 1.0
    np.testing.assert_array_equal(shared[0, 1], colour_map(many, limits=(0.0, 2.0))[0, 0])


def test_each_sign_has_its_own_colour_and_zero_is_transparent() -> None:
    blue, zero, red = colour_map(torch.tensor([[-1.0, 0.0, 0.5]]))[0]
    assert blue[2] > blue[0]
    assert red[0] > red[2]
    assert zero[3] == 0.0
    assert blue[3] == 1.0
    assert red[3] == 0.5


def test_non_finite_values_are_transparent() -> None:
    colours = colour_map(torch.tensor([[0.0, 1.0, torch.nan, torch.inf]]))
    np.testing.assert_array_equal(colours[0, :, 3], [0.0, 1.0, 0.0, 0.0])


def test_landmarks_are_drawn_at_their_pixels_and_missing_ones_are_skipped() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1), dpi=64)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(np.zeros((64, 64, 3)))
    points = torch.tensor([[20.0, 40.0], [torch.nan, 3.0], [50.0, 10.0]])
    draw_landmarks(axes, points, visible=torch.tensor([True, True, False]), colour="white", size=4)
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[..., :3].sum(2) > 300
    rows, columns = np.nonzero(drawn)
    assert abs(rows.mean() - 40) < 1.5
    assert abs(columns.mean() - 20) < 1.5
    assert np.ptp(rows) < 8


def test_drawing_landmarks_does_not_change_the_axis_limits() -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    axes.imshow(np.zeros((10, 10, 3)))
    view = axes.get_xlim(), axes.get_ylim()
    draw_landmarks(axes, torch.full((68, 2), 40.0), numbers=True)
    assert (axes.get_xlim(), axes.get_ylim()) == view


def test_a_grid_has_a_row_for_each_map_and_is_saved(tmp_path: Path, generator: torch.Generator) -> None:
    images = torch.rand(3, 3, 16, 16, generator=generator)
    maps = {
        "heatmap": torch.rand(3, 4, 4, generator=generator),
        "attribution": torch.rand(3, 8, 8, generator=generator),
    }
    figure = attribution_grid(
        images,
        maps,
        landmarks=torch.rand(3, 68, 2, generator=generator) * 16,
        captions={"attribution": ["a", "b", "c"]},
        caption_colours={"attribution": ["green", "red", "green"]},
        title="three",
    )
    assert len(figure.axes) == 9
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == ["image", "heatmap", "attribution"]
    path = save(figure, tmp_path / "made" / "grid.png", dpi=50)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_grid_refuses_mismatched_inputs() -> None:
    images = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match="'heatmap' must hold one entry for each of the 2"):
        attribution_grid(images, {"heatmap": torch.zeros(3, 4, 4)})
    with pytest.raises(ValueError, match=r"captions must name rows, got .*attention"):
        attribution_grid(images, {"heatmap": torch.zeros(2, 4, 4)}, captions={"attention": ["a", "b"]})
    with pytest.raises(ValueError, match="at least one image"):
        attribution_grid(images[:0], {})


def test_an_unknown_format_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    figure = attribution_grid(torch.zeros(1, 3, 8, 8), {})
    with pytest.raises(ValueError, match=r"must end in one of .*png"):
        save(figure, tmp_path / "folder" / "grid.doc")
    assert not (tmp_path / "folder").exists()

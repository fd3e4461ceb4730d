"""Image files of every bit depth are read as 8-bit RGB, or rejected with the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")

from PIL import Image

from pal_fast.data.images import inspect
from pal_fast.image_files import read_image


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
@pytest.mark.parametrize("box", [None, (2, 1, 4, 3)])
def test_a_16_bit_grey_image_keeps_its_grey_levels(
    suffix: str, box: tuple[int, int, int, int] | None, tmp_path: Path
) -> None:
    grey = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    Image.fromarray(grey).save(tmp_path / f"a{suffix}")
    cut = grey if box is None else grey[1:4, 2:6]
    image = read_image(tmp_path / f"a{suffix}", box)
    assert image.shape == (3, *cut.shape)
    assert np.abs(image.numpy().astype(int) - cut // 256).max() <= 1
    assert inspect(tmp_path / f"a{suffix}") == (8, 8)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pixels_of_unknown_range_are_refused(kind: type, tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 90000, kind)).save(tmp_path / "a.tif")
    with pytest.raises(
        OSError, match=r"a\.tif cannot be read as an image: its pixels \(mode [IF]\) have no known range"
    ):
        read_image(tmp_path / "a.tif")
    assert "no known range: they must have 8 or 16 bits" in str(inspect(tmp_path / "a.tif"))


def test_exif_orientation_is_never_applied(tmp_path: Path) -> None:
    """Landmarks refer to stored pixels: an image with an EXIF rotation is read, measured and transformed as stored."""
    stored = np.zeros((8, 16, 3), np.uint8)
    stored[:, 12:] = 255
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    Image.fromarray(stored).save(tmp_path / "a.png", exif=turned)
    with Image.open(tmp_path / "a.png") as image:
        assert image.getexif()[0x0112] == 6
        as_image = pytest.importorskip("pal_fast.data.inputs").as_image(image)
    assert inspect(tmp_path / "a.png") == (8, 16)
    for pixels in (read_image(tmp_path / "a.png"), as_image):
        np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), stored)

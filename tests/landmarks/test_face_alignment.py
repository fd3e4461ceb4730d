"""The real face-alignment package with random weights in its cache; no test needs network access."""

from __future__ import annotations

import os
import shutil
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.drawn_datasets import save_jpeg
from torch import Tensor

from pal_fast import cli
from pal_fast.landmarks import read_landmark_set
from pal_fast.landmarks.fan import FaceAligner
from pal_fast.landmarks.fan_geometry import window_of

# For these few lines, numba's compilation takes longer than running them uncompiled.
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")
face_alignment = pytest.importorskip("face_alignment", exc_type=ImportError)

SIZE = 72


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub directory with a FAN of random weights, in the format and under the name that the package reads."""
    from face_alignment.models import FAN

    folder = tmp_path_factory.mktemp("hub")
    (folder / "checkpoints").mkdir()
    torch.manual_seed(1)
    torch.save(FAN(4).state_dict(), folder / "checkpoints" / "2DFAN4-11f355bf06.pth.tar")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty hub directory and no network access."""

    def unreachable(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def weights(hub: Path, cache: Path) -> Path:
    shutil.copytree(cache, hub)
    return hub


@pytest.fixture
def faces(tmp_path: Path, generator: torch.Generator) -> Path:
    """Three images in two folders."""
    for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg"):
        save_jpeg(tmp_path / "images" / name, torch.rand(3, SIZE, SIZE, generator=generator))
    return tmp_path / "images"


def test_the_command_extracts_with_the_real_network(
    weights: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "landmarks.npz"
    arguments = ["landmarks", str(faces), "-o", str(output), "--boxes", "full", "--batch", "2", "--device", "cpu"]
    assert cli.main([*arguments, "--no-flip"]) == 0
    assert f"{output}: 3 images" in capsys.readouterr().out
    marks = read_landmark_set(output)
    assert marks.names == ("a/1.jpg", "a/2.jpg", "b/1.jpg")
    assert marks.found.all()
    assert marks.scores is not None
    assert marks.scores.isfinite().all()
    window = window_of((0, 0, SIZE, SIZE))
    assert (marks.points - torch.tensor([window.x, window.y])).abs().max() <= window.side / 2 + 0.5
    # The maximum of the same network's heatmap, called directly on the same crop.
    net = FaceAligner(lambda *_: (0, 0, SIZE, SIZE), flip=False)._package.face_alignment_net
    from pal_fast.image_files import read_image
    from pal_fast.landmarks.fan_geometry import INPUT_SIZE, peaks, to_image
    from pal_fast.landmarks.geometry import crop_window

    with torch.inference_mode():
        heatmaps = net(crop_window(read_image(faces / "b/1.jpg"), window, INPUT_SIZE)[None])[-1]
    shares, values = peaks(heatmaps)
    torch.testing.assert_close(to_image(shares, [window])[0], marks.points[2], rtol=0, atol=1e-2)
    torch.testing.assert_close(values[0], marks.scores[2], rtol=1e-3, atol=1e-4)
    assert cli.main(arguments) == 2, "with other settings"
    assert "were made with" in capsys.readouterr().err


def test_boxes_beside_the_images_equal_those_of_the_folder_detector(weights: Path, faces: Path, tmp_path: Path) -> None:
    box = [10.0, 12.0, 60.0, 66.0]
    torch.save([torch.tensor(box)], faces / "a" / "1.t7")
    np.save(faces / "a" / "2.npy", np.array([[0.0, 0, 5, 5], box]))
    output = tmp_path / "landmarks.npz"
    arguments = ["landmarks", str(faces), "-o", str(output), "--boxes", "beside", "--device", "cpu", "--no-flip"]
    assert cli.main(arguments) == 0
    marks = read_landmark_set(output)
    assert marks.found.tolist() == [True, True, False]
    window = window_of(box)
    assert (marks.points[:2] - torch.tensor([window.x, window.y])).abs().max() <= window.side / 2 + 0.5
    detector = face_alignment.FaceAlignment(
        face_alignment.LandmarksType.TWO_D, device="cpu", face_detector="folder", compile=False
    ).face_detector
    assert detector.detect_from_image(str(faces / "a" / "1.jpg"))[0].tolist() == box


def known_heatmaps(generator: torch.Generator) -> Tensor:
    """(1, 68, 64, 64): peaks with equal neighbours, so that both subpixel refinements stay at the cell's centre."""
    heatmaps = torch.zeros(1, 68, 64, 64)
    for k, (row, column) in enumerate(torch.randint(4, 60, (68, 2), generator=generator).tolist()):
        heatmaps[0, k, row - 1 : row + 2, column - 1 : column + 2] = 0.5
        heatmaps[0, k, row, column] = 1
    return heatmaps


def test_the_packages_own_landmarks_equal_ours_truncated_to_whole_pixels(
    weights: Path, generator: torch.Generator
) -> None:
    """face-alignment measures coordinates from the image's corner and truncates them to the pixel that holds them."""
    heatmaps = known_heatmaps(generator)
    own = face_alignment.FaceAlignment(
        face_alignment.LandmarksType.TWO_D, device="cpu", face_detector="folder", compile=False, flip_input=False
    )
    own.face_alignment_net = lambda crops: [heatmaps]
    for size, box in (((100, 100), (0, 0, 100, 100)), ((200, 300), (60, 30, 240, 190)), ((128, 128), (20, 9, 101, 99))):
        image = torch.zeros(3, *size, dtype=torch.uint8)
        theirs = own.get_landmarks_from_image(image.permute(1, 2, 0).numpy(), detected_faces=[np.array(box)])[0]
        ours, _ = FaceAligner(lambda *_, box=box: box, flip=False, package=own)(["x"], [Path()], [image])  # type: ignore[misc]
        from_corner = ours[0] + 0.5
        sure = (from_corner - from_corner.round()).abs() > 1e-3
        assert sure.float().mean() > 0.5
        assert torch.equal(from_corner.trunc()[sure], torch.from_numpy(theirs).float()[sure])


def test_the_window_comes_from_the_real_detector(weights: Path, faces: Path, tmp_path: Path) -> None:
    """With zero weights, SFD finds no face; with one bias set, it finds faces of 64 pixels, its anchors, everywhere."""
    from face_alignment.detection.sfd.net_s3fd import s3fd

    file = weights / "checkpoints" / "s3fd-619a316812.pth"
    state = {name: torch.zeros_like(value) for name, value in s3fd().state_dict().items()}
    arguments = ["landmarks", str(faces), "--device", "cpu", "--no-flip", "-o"]
    torch.save(state, file)
    assert cli.main([*arguments, str(tmp_path / "none.npz")]) == 0
    assert not read_landmark_set(tmp_path / "none.npz").found.any()
    state["conv5_3_norm_mbox_conf.bias"] = torch.tensor([-5.0, 5.0])
    torch.save(state, file)
    assert cli.main([*arguments, str(tmp_path / "all.npz")]) == 0
    points = read_landmark_set(tmp_path / "all.npz").points
    assert points.isfinite().all()
    reach = window_of((0, 0, 64, 64)).side
    for of in points:
        assert (of.amax(0) - of.amin(0)).max() <= reach
    detector = FaceAligner()._package.face_detector
    box = detector.detect_from_image(np.zeros((SIZE, SIZE, 3), np.uint8))[0]
    assert box[2] - box[0] == pytest.approx(64, abs=1)


def test_batched_detection_of_images_of_one_size_equals_detection_one_by_one(
    weights: Path, generator: torch.Generator
) -> None:
    from face_alignment.detection.sfd.net_s3fd import s3fd

    torch.manual_seed(int(generator.initial_seed()) % 2**31)
    network = s3fd()
    # Makes the detector confident in some anchors and not in most.
    network.conv4_3_norm_mbox_conf.weight.data *= 100 / network.conv4_3_norm.weight.data.mean()
    network.conv4_3_norm_mbox_conf.bias.data[1] -= 0.5
    torch.save(network.state_dict(), weights / "checkpoints" / "s3fd-619a316812.pth")
    aligner = FaceAligner(flip=False)
    images = [
        torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        for size in [(SIZE, SIZE), (64, 80), (SIZE, SIZE), (64, 80), (SIZE, SIZE), (40, 40)]
    ]
    seen: list[int] = []
    detect = aligner._package.face_detector.detect_from_batch
    aligner._package.face_detector.detect_from_batch = lambda batch: seen.append(len(batch)) or detect(batch)
    together = aligner._detect(images)
    assert sorted(seen) == [2, 3]
    alone = [aligner._detect([image])[0] for image in images]
    assert sorted(seen) == [2, 3]
    assert any(box is not None for box in alone)
    for one, other in zip(together, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-2)


def test_the_error_for_missing_weights_says_which_file_to_put_where(
    hub: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["landmarks", str(faces), "-o", str(tmp_path / "m.npz"), "--device", "cpu"]) == 2
    stderr = capsys.readouterr().err
    for name in ("2DFAN4-11f355bf06.pth.tar", "s3fd-619a316812.pth"):
        assert str(hub / "checkpoints" / name) in stderr
        assert f"https://www.adrianbulat.com/downloads/python-fan/{name}" in stderr
    assert not list(tmp_path.glob("m.npz*"))
    assert not list(hub.rglob("*.pth*"))


def test_broken_weights_are_named_in_the_error(
    hub: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = hub / "checkpoints" / "2DFAN4-11f355bf06.pth.tar"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half a download")
    assert cli.main(["landmarks", str(faces), "-o", str(tmp_path / "m.npz"), "--boxes", "full", "--device", "cpu"]) == 2
    stderr = capsys.readouterr().err
    assert "Remove the one that is broken" in stderr
    assert str(file) in stderr

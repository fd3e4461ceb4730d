"""`pal-fast explain` on a real face: the annotation, the geometry, and the report on the weights."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pal_fast import attribute, cli, explain
from pal_fast.landmarks import LandmarkSet, read_landmarks

skimage_data = pytest.importorskip("skimage.data", reason="the photograph is scikit-image's")
pytest.importorskip("torchvision", reason="the networks are torchvision's and timm's")
pytest.importorskip("timm", reason="the networks are torchvision's and timm's")

LANDMARKS = Path(__file__).parents[1] / "data" / "astronaut.pts"


@pytest.fixture(scope="module")
def photograph() -> Tensor:
    """The photograph, (3, 512, 512) uint8."""
    return torch.from_numpy(skimage_data.astronaut()).permute(2, 0, 1).contiguous()


@pytest.fixture(scope="module")
def points() -> Tensor:
    """The photograph's landmarks, (68, 2)."""
    return read_landmarks(LANDMARKS)[0]


@pytest.fixture(scope="module")
def photograph_file(photograph: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    path = tmp_path_factory.mktemp("photograph") / "astronaut.png"
    Image.fromarray(photograph.permute(1, 2, 0).numpy()).save(path)
    return path


def brightness_at(image: Tensor, places: Tensor) -> Tensor:
    """(K,) mean of the 3 x 3 pixels around each place (K, 2), in [0, 255]."""
    smooth = nn.functional.avg_pool2d(image.float().mean(0, keepdim=True)[None], 3, 1, 1)[0, 0]
    index = places.round().long()
    return smooth[index[:, 1], index[:, 0]]


def test_the_annotation_lies_on_the_face(photograph: Tensor, points: Tensor) -> None:
    """Brows are darker than the lids below, pupils than cheeks, lips than teeth; beyond the jaw is wall."""
    assert points.shape == (68, 2)
    brows, lids = points[[19, 20, 23, 24]], (points[[19, 20, 23, 24]] + points[[37, 38, 43, 44]]) / 2
    assert (brightness_at(photograph, brows) < brightness_at(photograph, lids)).all()
    pupils = torch.stack([points[36:42].mean(0), points[42:48].mean(0)])
    cheeks = (points[[2, 14]] + points[[31, 35]]) / 2
    assert (brightness_at(photograph, pupils) < 0.5 * brightness_at(photograph, cheeks)).all()
    teeth, lips = points[[62, 66]].mean(0, keepdim=True), points[[51, 62, 57, 66]].view(2, 2, 2).mean(1)
    assert (brightness_at(photograph, teeth) > brightness_at(photograph, lips) + 20).all()
    across = points[[4, 12]] - points[[12, 4]]
    beyond = points[[4, 12]] + 0.06 * across
    within = points[[4, 12]] - 0.06 * across
    assert ((brightness_at(photograph, beyond) - brightness_at(photograph, within)).abs() > 15).all()


@pytest.mark.parametrize("crop", explain.CROPS)
@pytest.mark.parametrize("size", [96, 224])
def test_a_bright_pixel_lands_on_its_landmark_in_the_crop(crop: str, size: int, points: Tensor) -> None:
    target = points[30].round()
    x, y = int(target[0]), int(target[1])
    image = torch.zeros(3, 300, 400, dtype=torch.uint8)
    image[:, y - 2 : y + 3, x - 2 : x + 3] = 255
    window = explain.window_around(points, 300, 400, crop)
    picture = explain.crop_window(image, window, size)
    light = picture.sum(0) / picture.sum()
    index = torch.arange(size, dtype=torch.float32)
    centre = torch.stack([(light.sum(0) * index).sum(), (light.sum(1) * index).sum()])
    torch.testing.assert_close(centre, explain.into_window(target[None], window, size)[0], rtol=0, atol=0.1)


def test_the_face_fills_the_crop(points: Tensor) -> None:
    seen = explain.into_window(points, explain.window_around(points, 512, 512, "face"), 224)
    extent = seen.amax(0) - seen.amin(0)
    assert float(extent.max()) == pytest.approx(224 / explain.FACE_MARGIN, rel=1e-4)
    torch.testing.assert_close((seen.amax(0) + seen.amin(0)) / 2, torch.full((2,), 111.5), rtol=0, atol=1e-3)


def test_a_crop_without_landmarks_is_refused() -> None:
    with pytest.raises(ValueError, match="no valid point"):
        explain.window_around(torch.full((68, 2), torch.nan), 100, 100, "face")
    with pytest.raises(ValueError, match="one pixel"):
        explain.window_around(torch.full((68, 2), 5.0), 100, 100, "face")


def test_the_attribution_equals_attribute_on_the_crop(photograph: Tensor, points: Tensor) -> None:
    """The map equals `attribute`'s on the normalised crop, and the network's mode is restored."""
    network = nn.Sequential(nn.Conv2d(3, 4, 5, 4, 2), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(1024, 5)).train()
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    got = explain.explain(photograph, points, network, "1", size=64, mean=mean, std=std)
    assert network.training
    normalised = (got.picture - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    maps, logits = attribute(network.eval(), "1", normalised[None], target="predicted")
    torch.testing.assert_close(got.attribution, maps[0])
    torch.testing.assert_close(got.probabilities, logits[0].softmax(0))
    pair = torch.stack([got.attribution.flatten(), got.heatmap.flatten()])
    assert got.correlation == pytest.approx(float(torch.corrcoef(pair)[0, 1]), abs=1e-4)


def test_a_flat_attribution_has_no_correlation(photograph: Tensor, points: Tensor) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Flatten(), nn.Linear(4 * 64, 3))
    nn.init.zeros_(network[2].weight)
    got = explain.explain(photograph, points, network, "0", size=32)
    assert math.isnan(got.correlation)
    explain.draw(got, title="flat")


def test_the_command_draws_resnet50_at_layer3_and_states_that_it_is_untrained(
    photograph_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.png"
    arguments = [str(photograph_file), "--landmarks", str(LANDMARKS), "--model", "resnet50", "--layer", "layer3"]
    assert cli.main(["explain", *arguments, "--weights", "random", "--size", "128", "-o", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "512 x 512; the network sees 128 x 128 (face)" in printed
    assert "68 points, 68 of them" in printed
    assert "'layer3' with 8 x 8 cells" in printed
    assert "UNTRAINED" in printed
    assert output.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["net.pt", "random weights; not in the file.pt"])
def test_a_checkpoint_is_used_and_not_called_untrained_whatever_its_name(
    name: str,
    photograph_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torchvision.models import resnet18

    network = resnet18(num_classes=7)
    with torch.no_grad():
        network.fc.bias[4] = 1e4  # fixes the prediction
    torch.save(network.state_dict(), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    arguments = [str(photograph_file), "--landmarks", str(LANDMARKS), "--model", "resnet18", "--classes", "7"]
    arguments += ["--weights", name, "--size", "64", "-o", str(tmp_path / "out.png")]
    assert cli.main(["explain", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "prediction   logit 4, probability 1.000" in printed
    assert "UNTRAINED" not in printed


def test_library_weights_without_a_head_for_the_classes_are_called_partly_untrained(
    photograph_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import ResNet18_Weights, resnet18

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[1]
    torch.save(resnet18().state_dict(), file)
    arguments = [str(photograph_file), "--landmarks", str(LANDMARKS), "--model", "resnet18", "--classes", "7"]
    assert cli.main(["explain", *arguments, "--size", "64", "-o", str(tmp_path / "out.svg")]) == 0
    assert "PARTLY UNTRAINED" in capsys.readouterr().out


def test_a_checkpoint_whose_head_does_not_match_is_refused(
    photograph_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from torchvision.models import resnet18

    torch.save(resnet18(num_classes=7).state_dict(), tmp_path / "net.pt")
    arguments = [str(photograph_file), "--landmarks", str(LANDMARKS), "--model", "resnet18"]
    assert cli.main(["explain", *arguments, "--weights", str(tmp_path / "net.pt"), "--size", "64"]) == 2
    assert "--classes" in capsys.readouterr().err


def test_a_timm_network_is_found(photograph_file: Path, tmp_path: Path) -> None:
    arguments = [str(photograph_file), "--landmarks", str(LANDMARKS), "--model", "timm:resnet10t", "--layer", "layer3"]
    arguments += ["--weights", "random", "--size", "64", "--crop", "whole", "-o", str(tmp_path / "out.svg")]
    assert cli.main(["explain", *arguments]) == 0
    assert (tmp_path / "out.svg").read_text().lstrip().startswith("<?xml")


@pytest.mark.parametrize("target", ["predicted", "sum"])
def test_an_activation_is_not_called_an_attribution_of_logits(
    target: str, photograph_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(photograph_file), "--landmarks", str(LANDMARKS), "--model", "resnet18", "--weights", "random"]
    arguments += ["--size", "64", "--target", target, "--attribution", "activation", "-o", str(tmp_path / "out.svg")]
    assert cli.main(["explain", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "of the activation with the landmarks' heatmap" in printed
    assert "attribution" not in printed
    assert "attribution" not in (tmp_path / "out.svg").read_text()


def test_landmarks_are_selected_by_the_images_name(
    photograph_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = read_landmarks(LANDMARKS)[0]
    names = (f"test/{photograph_file.name}", f"train/{photograph_file.name}", "train/other.png")
    LandmarkSet(torch.stack([own + 1000, own, own - 1000]), names).save(tmp_path / "m.npz")
    image = tmp_path / "train" / photograph_file.name
    image.parent.mkdir()
    shutil.copy(photograph_file, image)
    arguments = ["--landmarks", str(tmp_path / "m.npz"), "--model", "resnet18", "--weights", "random", "--size", "64"]
    assert cli.main(["explain", str(image), *arguments, "-o", str(tmp_path / "out.svg")]) == 0
    assert "68 points, 68 of them in what the network sees" in capsys.readouterr().out


def test_landmarks_of_several_images_without_a_matching_name_are_refused(
    photograph_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.pts").write_text(LANDMARKS.read_text())
    assert cli.main(["explain", str(photograph_file), "--landmarks", str(tmp_path)]) == 2
    assert "holds landmarks of 2 images (a, b), and their names do not tell which belong to" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--size", "--classes"])
@pytest.mark.parametrize("number", ["0", "-3"])
def test_counts_must_be_at_least_one(
    option: str, number: str, photograph_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["explain", str(photograph_file), "--landmarks", str(LANDMARKS), option, number])
    assert stop.value.code == 2
    assert f"argument {option}: must be a whole number of at least 1, got '{number}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "layer", "size"), [("vit_b_32", "encoder.layers.encoder_layer_10", "100"), ("resnet18", "layer3", "-")]
)
def test_an_image_size_that_the_network_rejects_is_reported_in_one_line(
    model: str,
    layer: str,
    size: str,
    photograph_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if size == "-":
        size = "64"

        def forward(self: nn.Module, images: Tensor) -> Tensor:
            raise IndexError("index 4 is out of range\nand more")

        monkeypatch.setattr("torchvision.models.ResNet.forward", forward)
    words = ["--model", model, "--layer", layer, "--weights", "random", "--size", size, "-o", str(tmp_path / "a.png")]
    assert cli.main(["explain", str(photograph_file), "--landmarks", str(LANDMARKS), *words]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert f"{model} does not run on images of {size} x {size} (--size): " in printed

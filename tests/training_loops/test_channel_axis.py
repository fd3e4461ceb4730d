"""The channel axis of a 4-dimensional output is inferred from the modules in and around it, not from shape alone."""

from __future__ import annotations

import random

import pytest
import torch
from support.networks import SmallNet
from torch import Tensor, nn

import pal_fast
from pal_fast.capture.candidates import candidates
from pal_fast.capture.channel_axis import NO_SIGNS, signs_of
from pal_fast.capture.layouts import find_layout
from pal_fast.compiled import can_compile_a_step, compile_step


def kind(model: nn.Module, layer: str, shape: tuple[int, ...], image_size: tuple[int, int]) -> str:
    return find_layout("auto", layer, shape, image_size, signs_of(model, model.get_submodule(layer))).kind


def outputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The 4-dimensional outputs of the modules that run exactly once, by name."""
    found: dict[str, list[Tensor]] = {}
    handles = [
        module.register_forward_hook(lambda m, a, out, name=name: found.setdefault(name, []).append(out))
        for name, module in model.named_modules()
        if name
    ]
    with torch.no_grad():
        model.eval()(images)
    for handle in handles:
        handle.remove()
    return {
        name: outs[0]
        for name, outs in found.items()
        if len(outs) == 1 and isinstance(outs[0], Tensor) and outs[0].ndim == 4
    }


def plain_cnn(channels: int, depth: int = 3, stride: int = 1, classes: int = 5) -> nn.Sequential:
    """Unpadded 3 x 3 convolutions with BatchNorm, pooled into a linear classifier."""
    layers: list[nn.Module] = []
    for index in range(depth):
        convolution = nn.Conv2d(3 if index == 0 else channels, channels, 3, stride if index == 0 else 1)
        layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def test_unpadded_convolutions_of_a_landscape_image_are_read_as_nchw():
    model = plain_cnn(32)
    images, landmarks = torch.randn(2, 3, 48, 64), torch.rand(2, 5, 2) * 48

    def loss(layout: str) -> Tensor:
        with pal_fast.PALLoss(model, "8", layout=layout) as pal:
            return pal(model(images), landmarks)

    assert torch.equal(loss("auto"), loss("NCHW"))
    report = pal_fast.PALLoss(model, ["6", "7", "8"]).check(images)
    assert [(layer.shape, layer.layout) for layer in report.layers] == [((2, 32, 42, 58), "NCHW")] * 3


def test_every_output_of_a_plain_cnn_is_read_as_nchw(seed):
    draw = random.Random(seed)
    for _ in range(60):
        channels, classes = draw.choice([8, 12, 16, 24, 32, 48]), draw.choice([2, 7, 10])
        model = plain_cnn(channels, draw.randint(1, 4), draw.choice([1, 2]), classes)
        images = torch.randn(1, 3, draw.randint(20, 64), draw.randint(20, 64))
        size = (images.shape[2], images.shape[3])
        for name, out in outputs(model, images).items():
            assert kind(model, name, tuple(out.shape), size) == "NCHW", (name, out.shape, size)


def small_swin(image: tuple[int, int], width: int) -> nn.Module:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    return models.SwinTransformer([4, 4], width, [1, 1], [2, 4], [3, 3], num_classes=5)


def small_swin_v2(image: tuple[int, int], width: int) -> nn.Module:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    parts = pytest.importorskip("torchvision.models.swin_transformer", reason="torchvision is not installed")
    block, merging = parts.SwinTransformerBlockV2, parts.PatchMergingV2
    return models.SwinTransformer([4, 4], width, [1, 1], [2, 4], [3, 3], 5, block=block, downsample_layer=merging)


def small_maxvit(image: tuple[int, int], width: int) -> nn.Module:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    return models.MaxVit(image, width, 4, [width, 2 * width], [1, 1], 8, 0.0, num_classes=5)


def small_convnext(image: tuple[int, int], width: int) -> nn.Module:
    convnext = pytest.importorskip("torchvision.models.convnext", reason="torchvision is not installed")
    settings = [convnext.CNBlockConfig(width, 2 * width, 2), convnext.CNBlockConfig(2 * width, None, 1)]
    return convnext.ConvNeXt(settings, num_classes=5)


def timm_builder(name: str, **options: object):
    def build(image: tuple[int, int], width: int) -> nn.Module:
        timm = pytest.importorskip("timm", reason="timm is not installed")
        return timm.create_model(name, num_classes=5, **options)

    return build


def timm_swin_builder(name: str):
    def build(image: tuple[int, int], width: int) -> nn.Module:
        timm = pytest.importorskip("timm", reason="timm is not installed")
        options = {"embed_dim": width, "depths": (1, 1), "num_heads": (2, 4), "window_size": 4}
        return timm.create_model(name, img_size=image, num_classes=5, **options)

    return build


#: Each with two image sizes: the dimension that is the same for both is the channel dimension.
NETWORKS = {
    "swin": (small_swin, (64, 96), (96, 64)),
    "swin_v2": (small_swin_v2, (64, 96), (96, 64)),
    "maxvit": (small_maxvit, (64, 64), (128, 128)),
    "convnext": (small_convnext, (64, 96), (96, 64)),
    "timm swin": (timm_swin_builder("swin_tiny_patch4_window7_224"), (64, 96), (128, 64)),
    "timm swin v2": (timm_swin_builder("swinv2_tiny_window8_256"), (64, 96), (128, 64)),
    "timm convnext": (timm_builder("convnext_atto"), (64, 96), (128, 64)),
    "timm resnet with Linear squeezes": (timm_builder("seresnet18"), (64, 96), (128, 64)),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_the_inferred_channel_axis_is_the_one_that_does_not_scale_with_the_image(network):
    build, first, second = NETWORKS[network]
    models = [build(size, 40) for size in (first, second)]
    maps = [outputs(m, torch.zeros(1, 3, *size)) for m, size in zip(models, (first, second), strict=True)]
    seen = set()
    for name in maps[0].keys() & maps[1].keys():
        one, two = tuple(maps[0][name].shape), tuple(maps[1][name].shape)
        if (one[1] == two[1]) == (one[3] == two[3]) or one[2] == 1:
            continue  # windows, or not a map
        wanted = "NCHW" if one[1] == two[1] else "NHWC"
        for model, size, shape in zip(models, (first, second), (one, two), strict=True):
            grid = shape[2:] if wanted == "NCHW" else shape[1:3]
            if grid[0] * size[1] == grid[1] * size[0]:
                assert kind(model, name, shape, size) == wanted, (name, shape, size)
                seen.add(wanted)
    assert seen >= ({"NHWC"} if "swin" in network else {"NCHW"})


def test_with_as_many_channels_as_rows_the_neighbouring_modules_decide():
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    swin, size = models.swin_t(weights=None), (384, 384)
    assert kind(swin, "features.1", (2, 96, 96, 96), size) == "NHWC"
    assert kind(swin, "features.1.0", (2, 96, 96, 96), size) == "NHWC"
    assert kind(models.resnet18(weights=None), "layer1", (2, 64, 64, 64), (256, 256)) == "NCHW"


@pytest.mark.parametrize(
    ("build", "layer", "shape", "size"),
    [
        (small_convnext, "features.1", (2, 24, 24, 24), (96, 96)),  # convolutions and linear layers, NCHW
        (small_swin, "features.0", (2, 24, 24, 24), (96, 96)),  # convolutions and linear layers, NHWC
        (small_maxvit, "blocks.0.layers.0.layers.window_attention", (2, 24, 24, 24), (96, 96)),  # linear layers, NCHW
    ],
)
def test_where_the_modules_do_not_decide_the_error_asks_for_layout(build, layer, shape, size):
    with pytest.raises(ValueError, match=rf"{layer}'.* may be \(B, C, H, W\) or \(B, H, W, C\).*layout='NCHW' or"):
        kind(build(size, 24), layer, shape, size)


def test_without_evidence_from_modules_a_shape_is_not_taken_for_channels_last():
    for shape in ((2, 14, 14, 384), (2, 7, 7, 7)):
        with pytest.raises(ValueError, match="may be"):
            find_layout("auto", "layer", shape, (224, 224), NO_SIGNS)
        assert find_layout("NHWC", "layer", shape, (224, 224)).kind == "NHWC"
    assert find_layout("auto", "layer", (2, 384, 14, 14), (224, 224), NO_SIGNS).kind == "NCHW"


@pytest.mark.parametrize(
    ("inside", "wanted"),
    [
        (nn.Conv2d(3, 32, 3), "NCHW"),
        (nn.MaxPool2d(2), "NCHW"),
        (nn.Sequential(nn.BatchNorm2d(32), nn.ReLU()), "NCHW"),
        (nn.GroupNorm(4, 32), "NCHW"),
        (nn.LayerNorm(58), "NHWC"),
        (nn.RMSNorm(58), "NHWC"),
        (nn.Sequential(nn.Linear(58, 116), nn.GELU(), nn.Linear(116, 58)), "NHWC"),
        (nn.Sequential(nn.Conv2d(3, 58, 4), nn.LayerNorm(58)), "NHWC"),
    ],
)
def test_modules_that_reveal_the_channel_axis(inside, wanted):
    model = nn.Sequential(inside, nn.Identity())
    for layer in ("0", "1"):  # a module that reveals nothing takes its neighbours' layout
        assert kind(model, layer, (2, 32, 42, 58), (48, 64)) == wanted


def test_torchvisions_layer_norm_2d_is_read_as_nchw():
    misc = pytest.importorskip("torchvision.models.convnext", reason="torchvision is not installed")
    model = nn.Sequential(nn.Conv2d(3, 32, 3), misc.LayerNorm2d(32), nn.ReLU())
    for layer in ("1", "2"):
        assert kind(model, layer, (2, 32, 42, 58), (48, 64)) == "NCHW"


class ChannelsMovedLast(nn.Module):
    """A convolution whose output is permuted to channels last, as between the stages of a VOLO."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 96, 4, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.convolution(images).permute(0, 2, 3, 1)


def test_a_convolution_permuted_to_channels_last_is_refused_and_not_misread():
    with pytest.raises(ValueError, match=r"'0'.*layout='NCHW' or layout='NHWC'"):
        kind(nn.Sequential(ChannelsMovedLast(), nn.Linear(96, 5)), "0", (2, 56, 56, 96), (224, 224))


@pytest.mark.parametrize(("side", "size"), [(48, (192, 192)), (16, (64, 128)), (32, (128, 64))], ids=str)
def test_a_square_map_permuted_to_channels_last_is_refused_by_strides_or_aspect_ratio(side, size):
    model = nn.Sequential(ChannelsMovedLast(), nn.Linear(side, 5))
    model[0].convolution = nn.Conv2d(3, side, 4, 4)
    images, landmarks = torch.randn(2, 3, *size), torch.rand(2, 5, 2) * 64
    if size == (64, 128):
        images = images.to(memory_format=torch.channels_last)  # so that the permuted output is contiguous
        model = model.to(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match=r"'0'.*layout='NCHW' or layout='NHWC'"):
        pal_fast.PALLoss(model, "0")(model(images).mean((1, 2)), landmarks)


def test_a_convolution_with_as_many_channels_as_rows_is_read_as_nchw():
    model = plain_cnn(32)
    images, landmarks = torch.randn(2, 3, 34, 34), torch.rand(2, 5, 2) * 34
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model, images = model.to(memory_format=memory_format), images.to(memory_format=memory_format)
        with pal_fast.PALLoss(model, "1") as auto, pal_fast.PALLoss(model, "1", layout="NCHW") as given:
            logits = model(images)
            assert torch.equal(auto(logits, landmarks), given(logits, landmarks))


def test_attribute_and_doctor_infer_the_same_layout():
    model = plain_cnn(32)
    images = torch.randn(1, 3, 48, 64)
    maps, _ = pal_fast.attribute(model, "8", images)
    assert maps.shape == (1, 42, 58)
    (found,) = [c for c in candidates(model, images) if c.name == "8"]
    assert (found.shape, found.layout) == ((1, 32, 42, 58), "NCHW")


class ChannelsLastNet(nn.Module):
    """Patch embeddings in NHWC, then a LayerNorm and a Linear over their channels."""

    def __init__(self):
        super().__init__()
        self.patches, self.classifier = nn.Conv2d(3, 12, 4, 4), nn.Linear(12, 5)
        self.mixed = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 12), nn.GELU())

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.mixed(self.patches(images).permute(0, 2, 3, 1)).square().mean((1, 2)))


@pytest.mark.skipif(not can_compile_a_step(), reason="this PyTorch traces no gradient in a compiled step")
def test_a_compiled_step_infers_the_same_layout():
    model = ChannelsLastNet().double()
    images, landmarks = torch.randn(2, 3, 32, 24, dtype=torch.float64), torch.rand(2, 5, 2, dtype=torch.float64) * 24
    pal = pal_fast.PALLoss(model, "mixed")
    loss = compile_step(lambda x, points: pal(model(x), points), backend="aot_eager")(images, landmarks)
    with pal_fast.PALLoss(model, "mixed", layout="NHWC") as explicit:
        torch.testing.assert_close(loss, explicit(model(images), landmarks))


def test_the_modules_around_a_layer_are_inspected_once(monkeypatch):
    inspected = []
    monkeypatch.setattr("pal_fast.capture.capture.signs_of", lambda *given: inspected.append(given) or signs_of(*given))
    model = SmallNet()
    pal = pal_fast.PALLoss(model, ["stem", "middle"])
    assert len(inspected) == 2
    for size in (16, 24, 16):
        pal(model(torch.randn(2, 3, size, size)), torch.rand(2, 5, 2) * size)
    assert len(inspected) == 2

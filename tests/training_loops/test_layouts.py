"""Tokens and channels-last maps become (B, C, H, W) views; a copy is made only behind a class token."""

from __future__ import annotations

import pytest
import torch
from support.networks import SmallNet, batch, gradient_error, judged, twin
from torch import nn

import pal_fast
from pal_fast import calls
from pal_fast.capture.layouts import find_layout


@pytest.mark.parametrize(
    ("shape", "image", "kind", "prefix", "grid"),
    [
        ((2, 197, 384), (224, 224), "tokens", 1, (14, 14)),
        ((2, 196, 384), (224, 224), "tokens", 0, (14, 14)),
        ((2, 201, 384), (224, 224), "tokens", 5, (14, 14)),
        ((2, 1 + 14 * 21, 64), (224, 336), "tokens", 1, (14, 21)),
        ((2, 2 + 30 * 10, 64), (480, 160), "tokens", 2, (30, 10)),
        ((2, 50, 64), None, "tokens", 1, (7, 7)),
        ((2, 384, 14, 14), (224, 224), "NCHW", 0, None),
        ((2, 512, 7, 7), (193, 193), "NCHW", 0, None),
        ((2, 16, 13, 12), (100, 90), "NCHW", 0, None),
    ],
)
def test_the_layout_is_inferred_from_the_shape(shape, image, kind, prefix, grid):
    layout = find_layout("auto", "layer", shape, image)
    assert (layout.kind, layout.prefix) == (kind, prefix)
    if grid:
        assert layout.grid == grid
    view = layout.view(torch.empty(shape))
    assert view.ndim == 4
    assert view.shape[1] == (shape[1] if kind == "NCHW" else shape[-1])


def test_views_share_memory_and_are_channels_last():
    tokens = torch.randn(2, 16, 8)
    view = find_layout("auto", "layer", (2, 16, 8), (32, 32)).view(tokens)
    assert view.data_ptr() == tokens.data_ptr()
    assert view.is_contiguous(memory_format=torch.channels_last)
    view = find_layout("auto", "layer", (2, 17, 8), (32, 32)).view(torch.randn(2, 17, 8))
    assert view._base is not None
    image = torch.randn(2, 4, 4, 8)
    view = find_layout("NHWC", "layer", (2, 4, 4, 8), (32, 32)).view(image)
    assert view.data_ptr() == image.data_ptr()
    assert view.is_contiguous(memory_format=torch.channels_last)


def test_tokens_behind_a_class_token_keep_their_order_in_memory():
    layout = find_layout("auto", "layer", (2, 17, 8), (32, 32))
    tokens = torch.randn(2, 17, 8), torch.randn(2, 17, 8)
    for made, given in zip(calls._one_layout(*map(layout.view, tokens)), tokens, strict=True):
        assert made.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(made.permute(0, 2, 3, 1).flatten(1, 2), given[:, 1:])
    patches = find_layout("auto", "layer", (2, 16, 8), (32, 32)).view(torch.randn(2, 16, 8))
    swin = torch.randn(2, 4, 4, 8).permute(0, 3, 1, 2)
    for view in (patches, swin):
        assert calls._one_layout(view, view)[0].data_ptr() == view.data_ptr()


@pytest.mark.parametrize(
    ("shape", "words"), [((2, 255, 8), "no grid"), ((2, 8), "must have shape"), ((2,) * 5, "shape")]
)
def test_a_shape_that_is_not_a_map_is_refused(shape, words):
    with pytest.raises(ValueError, match=words):
        find_layout("auto", "fc", shape, (224, 224))


@pytest.mark.parametrize("kept", [196 - 19, 196 - 49, 197 - 19])
def test_randomly_dropped_tokens_are_refused(kept):
    with pytest.raises(ValueError, match=r"not form a grid of whole patches.* 224 x 224.*patch_drop_rate.*layout="):
        find_layout("auto", "blocks.7", (2, kept, 384), (224, 224))


def test_layers_behind_a_vits_patch_dropout_are_refused():
    timm = pytest.importorskip("timm", reason="timm is not installed")
    options = {"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    model = timm.create_model("vit_tiny_patch16_224", patch_drop_rate=0.2, **options).train()
    images, _, landmarks = batch(size=64, dtype=torch.float32)
    pal = pal_fast.PALLoss(model, "blocks.0")
    with pytest.raises(ValueError, match=r"returns 52 tokens.*dropped at random"):  # the class token and 51 of 64
        pal(model(images), landmarks)


def test_patches_that_do_not_tile_the_image_need_an_explicit_layout():
    with pytest.raises(ValueError, match="layout='tokens' if the patches do not fill the image"):
        find_layout("auto", "blocks.7", (2, 197, 384), (230, 230))
    with pytest.raises(ValueError, match="layout='tokens' if the patches do not fill the image"):
        find_layout("auto", "blocks.7", (2, 17, 384), (17, 16))
    layout = find_layout("tokens", "blocks.7", (2, 197, 384), (230, 230))
    assert (layout.prefix, layout.grid) == (1, (14, 14))
    with pytest.raises(ValueError, match="not form a grid of an image of 224 x 224"):
        find_layout("tokens", "blocks.7", (2, 255, 384), (224, 224))


def test_an_explicit_layout_decides_where_the_shape_does_not():
    assert find_layout("NHWC", "layer", (2, 7, 7, 7), (224, 224)).kind == "NHWC"
    assert find_layout("NCHW", "layer", (2, 14, 14, 384), (224, 224)).kind == "NCHW"
    with pytest.raises(ValueError, match="tokens"):
        find_layout("tokens", "layer", (2, 7, 7, 7), (224, 224))


class ChannelsLastNet(SmallNet):
    """A network whose `middle` returns (B, H, W, C)."""

    def __init__(self):
        super().__init__()
        self.middle = nn.Sequential(self.middle, Permute(0, 2, 3, 1))

    def forward(self, images):
        return self.head(self.middle(self.stem(images)).permute(0, 3, 1, 2))


class Permute(nn.Module):
    def __init__(self, *dims):
        super().__init__()
        self.dims = dims

    def forward(self, x):
        return x.permute(self.dims)


def test_a_channels_last_layer_matches_the_double_backward():
    model = ChannelsLastNet().double()
    images, labels, landmarks = batch()
    _, gradients = judged(twin(model), "middle", images, labels, landmarks, view=lambda f: f.permute(0, 3, 1, 2))
    pal = pal_fast.PALLoss(model, "middle", layout="NHWC")  # 8 channels on 8 x 8 cells: the shape is ambiguous
    logits = model(images)
    (nn.functional.cross_entropy(logits, labels) + pal(logits, landmarks)).backward()
    assert gradient_error(model, gradients) < 1e-10


def test_a_layer_that_returns_a_tuple_of_tokens():
    class Tupled(nn.Module):
        def forward(self, x):
            return x * 1, None

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.block, self.fc = nn.Conv2d(3, 8, 4, stride=4), Tupled(), nn.Linear(8, 5)

        def forward(self, images):
            x = self.block(self.patches(images).flatten(2).transpose(1, 2))[0]
            return self.fc(torch.tanh(x).mean(1))

    model = Net()
    images, _, landmarks = batch(dtype=torch.float32)
    pal = pal_fast.PALLoss(model, "block")
    pal(model(images), landmarks).backward()
    assert model.patches.weight.grad.norm() > 0

"""The image size for landmarks is taken from the images of the same forward, or not at all."""

from __future__ import annotations

import pytest
import torch
from support.networks import SmallNet, Tokens, batch
from torch import nn

import pal_fast


class ChannelsLast(SmallNet):
    def forward(self, images):
        return super().forward(images.permute(0, 3, 1, 2))


def test_images_with_channels_in_the_last_dimension_require_image_size():
    model = ChannelsLast()
    images, _, landmarks = batch(dtype=torch.float32)
    turned = images.permute(0, 2, 3, 1).contiguous()
    with pytest.raises(
        ValueError, match=r"image_size=\(height, width\) is needed: .*\(4, 16, 16, 3\), seems to be channels-last"
    ):
        pal_fast.PALLoss(model, "middle")(model(turned), landmarks)
    sized = pal_fast.PALLoss(model, "middle", image_size=16)
    given = sized(model(turned), landmarks)
    sized.remove()
    plain = SmallNet()
    plain.load_state_dict(model.state_dict())
    pal = pal_fast.PALLoss(plain, "middle")
    torch.testing.assert_close(pal(plain(images), landmarks), given)


def test_the_size_of_small_and_narrow_images_is_read():
    model = SmallNet()
    for size in ((16, 4), (16, 3), (4, 16)):
        pal = pal_fast.PALLoss(model, "middle")
        pal(model(torch.randn(4, 3, *size)), torch.rand(4, 5, 2) * 3)
        pal.remove()


@pytest.mark.parametrize("colours", [1, 3, 4])
def test_the_size_of_images_of_1_3_or_4_channels_is_read(colours):
    model = nn.Sequential(
        nn.Conv2d(colours, 6, 3), nn.Softplus(), nn.Conv2d(6, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    model.insert(3, nn.Softplus())
    images, landmarks = torch.randn(2, colours, 12, 16), torch.rand(2, 5, 2) * 12
    read, given = (pal_fast.PALLoss(model, "0", image_size=size)(model(images), landmarks) for size in (None, (12, 16)))
    assert torch.equal(read, given)


def test_the_image_size_of_an_earlier_forward_is_not_reused():
    model = SmallNet()
    images, _, landmarks = batch(dtype=torch.float32)
    pal = pal_fast.PALLoss(model, "middle")
    pal(model(images), landmarks)
    larger = torch.randn(4, 3, 32, 32)
    with pytest.raises(ValueError, match="was not called as a whole, only parts of it"):
        pal(model.head(model.middle(model.stem(larger))), landmarks)
    pal.check(images)
    with pytest.raises(ValueError, match="was not called as a whole"):
        pal(model.head(model.middle(model.stem(larger))), landmarks)
    with pytest.raises(ValueError, match="sample_weight"):
        pal(model(images), landmarks, sample_weight=torch.ones(3))
    with pytest.raises(ValueError, match="was not called as a whole"):
        pal(model.head(model.middle(model.stem(larger))), landmarks)
    pal(model(images), landmarks)


def test_a_given_image_size_is_that_of_the_landmarks_and_not_of_the_models_input():
    """Landmarks on a square image of which the model sees a version of 4 x 4 patches of other proportions."""
    model = Tokens()
    images, _, landmarks = batch(dtype=torch.float32)
    height, width = 64, 32
    moved = (landmarks + 0.5) * torch.tensor([width / 16, height / 16]) - 0.5
    pal = pal_fast.PALLoss(model, "blocks.0", image_size=(height, width))
    heatmap = pal_fast.landmark_heatmap(moved, (4, 4), image_size=(height, width))
    torch.testing.assert_close(pal(model(images), moved), pal(model(images), heatmap=heatmap))


def test_a_loss_constructed_on_a_wrapper_that_is_not_called_is_refused():
    class Lightning(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = SmallNet()
            self.pal = pal_fast.PALLoss(self, "model.middle")

    module = Lightning()
    images, _, landmarks = batch(dtype=torch.float32)
    with pytest.raises(ValueError, match="construct the PALLoss with the module that you call, or pass image_size="):
        module.pal(module.model(images), landmarks)
    heatmap = torch.rand(4, 8, 8)
    module.pal(module.model(images), heatmap=heatmap)


def test_a_feature_map_fed_to_an_inner_module_is_not_mistaken_for_the_image():
    class Stemmed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
            self.inner = nn.Sequential(nn.Conv2d(16, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

        def forward(self, images):
            return self.inner(self.stem(images))

    model = Stemmed()
    images, _, landmarks = batch(dtype=torch.float32)
    pal = pal_fast.PALLoss(model.inner, "0")
    with pytest.raises(ValueError, match=r"input \(4, 16, 8, 8\) does not have the 1, 3 or 4 channels of an image"):
        pal(model(images), landmarks)
    heatmap = pal_fast.landmark_heatmap(landmarks, (6, 6), image_size=(16, 16))
    by_landmarks = pal_fast.PALLoss(model.inner, "0", image_size=16)(model(images), landmarks)
    torch.testing.assert_close(by_landmarks, pal(model(images), heatmap=heatmap))


def test_inputs_of_several_sizes_require_image_size():
    class Masked(SmallNet):
        def forward(self, mask, images):
            return super().forward(images) + mask.mean()

    images, _, landmarks = batch(dtype=torch.float32)
    model = Masked()
    pal = pal_fast.PALLoss(model, "middle")
    with pytest.raises(ValueError, match=r"inputs of several sizes, \[\(4, 1, 8, 8\), \(4, 3, 16, 16\)\]"):
        pal(model(torch.ones(4, 1, 8, 8), images), landmarks)
    pal(model(torch.ones(4, 1, 16, 16), images), landmarks)
    pal(model(torch.ones(4, 16, 8, 8), images), landmarks)  # no image

"""Where landmarks lie is known from the image of this very forward, or not at all."""

from __future__ import annotations

import pytest
import torch
from support.networks import SmallNet, batch
from torch import nn

import pal_fast


class ChannelsLast(SmallNet):
    def forward(self, images):
        return super().forward(images.permute(0, 3, 1, 2))


def test_images_with_their_channels_last_are_not_measured():
    model = ChannelsLast()
    images, _, landmarks = batch(dtype=torch.float32)
    turned = images.permute(0, 2, 3, 1).contiguous()
    with pytest.raises(ValueError, match=r"image_size=\(height, width\) is needed: .*channels last, \(4, 16, 16, 3\)"):
        pal_fast.PALLoss(model, "middle")(model(turned), landmarks)
    sized = pal_fast.PALLoss(model, "middle", image_size=16)
    given = sized(model(turned), landmarks)
    sized.remove()
    plain = SmallNet()
    plain.load_state_dict(model.state_dict())
    pal = pal_fast.PALLoss(plain, "middle")
    torch.testing.assert_close(pal(plain(images), landmarks), given)


def test_small_and_narrow_images_are_measured():
    model = SmallNet()
    for size in ((16, 4), (16, 3), (4, 16)):
        pal = pal_fast.PALLoss(model, "middle")
        pal(model(torch.randn(4, 3, *size)), torch.rand(4, 5, 2) * 3)
        pal.remove()


def test_the_size_of_an_earlier_forward_is_not_taken_for_this_one():
    model = SmallNet()
    images, _, landmarks = batch(dtype=torch.float32)
    pal = pal_fast.PALLoss(model, "middle")
    pal(model(images), landmarks)
    larger = torch.randn(4, 3, 32, 32)
    with pytest.raises(ValueError, match="has not been called itself, only parts of it"):
        pal(model.head(model.middle(model.stem(larger))), landmarks)
    pal.check(images)
    with pytest.raises(ValueError, match="has not been called itself"):
        pal(model.head(model.middle(model.stem(larger))), landmarks)
    pal(model(images), landmarks)


def test_a_loss_made_on_a_module_around_the_one_that_is_called_says_so():
    class Lightning(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = SmallNet()
            self.pal = pal_fast.PALLoss(self, "model.middle")

    module = Lightning()
    images, _, landmarks = batch(dtype=torch.float32)
    with pytest.raises(ValueError, match="make the PALLoss on the module that you call, or pass image_size="):
        module.pal(module.model(images), landmarks)
    heatmap = torch.rand(4, 8, 8)
    module.pal(module.model(images), heatmap=heatmap)

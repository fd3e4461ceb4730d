"""Outputs of 1D and 3D convolutions are refused, tokens of convolutional patches are not; what is left for video."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pal_fast


@pytest.mark.parametrize(
    "layer",
    [nn.Conv1d(4, 16, 3), nn.Sequential(nn.Conv1d(4, 16, 3), nn.BatchNorm1d(16), nn.ReLU()), nn.AvgPool1d(1)],
    ids=["Conv1d", "block of Conv1d", "AvgPool1d"],
)
def test_the_output_of_a_1d_convolution_is_not_taken_for_tokens(layer):
    """Its shape is (B, 16, L), and 16 channels would pass for a 4 x 4 grid of tokens."""
    model = nn.Sequential(nn.Conv1d(3, 16 if isinstance(layer, nn.AvgPool1d) else 4, 3), layer)
    model.extend([nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 5)])
    pal = pal_fast.PALLoss(model, "1", image_size=16)
    with pytest.raises(ValueError, match=r"has its channels second, so it is not \(B, N, C\) tokens"):
        pal(model(torch.randn(2, 3, 24)), torch.rand(2, 5, 2) * 16)


def test_tokens_that_come_out_of_a_1d_convolution_need_an_explicit_layout():
    """(B, 16, 16): by the modules (B, C, L), by the user's word (B, N, C)."""
    model = nn.Sequential(nn.Conv1d(3, 16, 3), nn.Softplus(), nn.Flatten(), nn.Linear(16 * 16, 5))
    pal = pal_fast.PALLoss(model, "0", image_size=16, layout="tokens")
    assert pal(model(torch.randn(2, 3, 18)), torch.rand(2, 5, 2) * 16) != 0


def test_the_output_of_a_3d_convolution_is_refused():
    model = nn.Sequential(nn.Conv3d(3, 6, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 5))
    pal = pal_fast.PALLoss(model, "0", image_size=16)
    with pytest.raises(
        ValueError, match=r"layer '0' must have shape \(B, C, H, W\), .* got \(2, 6, 2, 14, 14\)"
    ) as refused:
        pal(model(torch.randn(2, 3, 4, 16, 16)), torch.rand(2, 5, 2) * 16)
    assert "call pal_fast.pal_loss on output, gradient and heatmap with T folded into H" in str(refused.value)


def test_pal_loss_with_time_folded_into_height_is_the_loss_of_a_3d_convolution():
    body = nn.Conv3d(3, 6, 3).double()
    head = nn.Sequential(nn.Conv3d(6, 4, 2), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 5 * 5, 5)).double()
    heatmap = torch.rand(2, 2, 6, 6, dtype=torch.float64)
    f = body(torch.randn(2, 3, 4, 8, 8, dtype=torch.float64))
    (g,) = torch.autograd.grad(head(f).sum(), f, create_graph=True)
    loss = pal_fast.pal_loss(f.flatten(2, 3), g.flatten(2, 3), heatmap.flatten(1, 2))

    maps = (g.abs() * f).mean(1).flatten(1)
    expected = -torch.stack(
        [torch.corrcoef(torch.stack([m, h]))[0, 1] for m, h in zip(maps, heatmap.flatten(1), strict=True)]
    ).mean()
    torch.testing.assert_close(loss, expected)
    parameters = [*body.parameters(), head[0].weight]
    found, wanted = (torch.autograd.grad(value, parameters, retain_graph=True) for value in (loss, expected))
    torch.testing.assert_close(found, wanted)


def test_convolutional_patches_transposed_to_channels_last_are_tokens():
    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.norm = nn.Conv2d(3, 24, 4, stride=4), nn.BatchNorm2d(24)

        def forward(self, images):
            return self.norm(self.convolution(images)).flatten(2).transpose(1, 2)

    model = nn.Sequential(Patches(), nn.GELU(), nn.Linear(24, 7), nn.GELU(), nn.Flatten(), nn.Linear(7 * 16, 5))
    pal = pal_fast.PALLoss(model, "0")
    assert pal.check(torch.randn(2, 3, 16, 16)).layers[0].layout == "tokens, 0 + 4 x 4"

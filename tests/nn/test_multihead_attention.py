"""pal_fast.nn.MultiheadAttention against PyTorch's own: values, both derivatives, and what it leaves to PyTorch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.attention import DOUBLE, given
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import pal_fast.nn

MODULES: dict[str, dict[str, Any]] = {
    "batch first": {"batch_first": True},
    "sequence first": {},
    "without biases": {"bias": False, "batch_first": True},
    "other keys and values": {"kdim": 3, "vdim": 5, "batch_first": True},
}


@pytest.mark.parametrize(
    "mask", [None, "of all heads", "of each head", "left out by all heads", "left out by each head"]
)
@pytest.mark.parametrize("options", MODULES.values(), ids=MODULES)
def test_multihead_attention_equals_pytorchs(options: dict[str, Any], mask: str | None) -> None:
    theirs = nn.MultiheadAttention(8, 2, dtype=DOUBLE, **options)
    own = pal_fast.nn.MultiheadAttention(8, 2, dtype=DOUBLE, **options)
    own.load_state_dict(theirs.state_dict())
    query, key, value = given((3, 3, 8), (3, 3, options.get("kdim", 8)), (3, 3, options.get("vdim", 8)))
    shape = (3, 3) if mask and "all" in mask else (6, 3, 3)
    bias = torch.randn(shape, dtype=DOUBLE) if mask else None
    if mask and "left out" in mask:
        bias = torch.rand(shape) < 0.4
        bias[..., 0] = False
    for inputs in ((query, key, value), *([] if "kdim" in options else [(query,) * 3])):
        results = []
        for module in (own, theirs):
            parameters = list(module.parameters())

            def call(*tensors: Tensor, module: nn.Module = module) -> Tensor:
                output, weights = module(*tensors, need_weights=False, attn_mask=bias)
                assert weights is None
                return output

            with sdpa_kernel(SDPBackend.MATH):
                output = call(*inputs)
                (g,) = torch.autograd.grad(output.pow(3).sum(), query, create_graph=True)
                results.append([output, g, *torch.autograd.grad(g.square().sum(), [query, *parameters])])
        for got, wanted in zip(*results, strict=True):
            torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"need_weights": False, "key_padding_mask": torch.tensor([[False, True, False]] * 2)}],
    ids=["weights asked for", "padding"],
)
def test_multihead_attention_falls_back_to_pytorch_for_weights_and_padding(arguments: dict[str, Any]) -> None:
    theirs = nn.MultiheadAttention(8, 2, batch_first=True)
    own = pal_fast.nn.MultiheadAttention(8, 2, batch_first=True)
    own.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 8, requires_grad=True)
    for got, wanted in zip(own(x, x, x, **arguments), theirs(x, x, x, **arguments), strict=True):
        torch.testing.assert_close(got, wanted)


def test_a_decoder_layer_with_masks_equals_pytorchs() -> None:
    theirs = nn.TransformerDecoderLayer(8, 2, 16, 0.0, batch_first=True, dtype=DOUBLE)
    own = copy.deepcopy(theirs)
    for module in (own.self_attn, own.multihead_attn):
        module.__class__ = pal_fast.nn.MultiheadAttention
    target, memory = given((2, 4, 8), (2, 3, 8))
    ahead, unseen = torch.ones(4, 4, dtype=torch.bool).triu(1), torch.rand(4, 3) < 0.4
    unseen[:, 0] = False
    results = []
    for layer in (own, theirs):
        with sdpa_kernel(SDPBackend.MATH):
            output = layer(target, memory, ahead, unseen)
            (g,) = torch.autograd.grad(output.pow(3).sum(), target, create_graph=True)
            results.append([output, g, *torch.autograd.grad(g.square().sum(), [target, memory])])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    "mask",
    [torch.zeros(3, 3, dtype=torch.int64), torch.zeros(1, 3), torch.zeros(2, 3, 3), torch.zeros(3)],
    ids=["whole numbers", "one row", "too few heads", "one dimension"],
)
def test_multihead_attention_refuses_the_masks_that_pytorch_does(mask: Tensor) -> None:
    x = torch.randn(2, 3, 8, requires_grad=True)
    for kind in (nn.MultiheadAttention, pal_fast.nn.MultiheadAttention):
        with pytest.raises((RuntimeError, AssertionError)):
            kind(8, 2, batch_first=True)(x, x, x, need_weights=False, attn_mask=mask)

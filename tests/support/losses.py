"""Inputs of the loss and its judge: the reference in float64, with gradients."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import pal_fast
from pal_fast import reference

from .compare import assert_close


def layer(
    generator: torch.Generator,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    *,
    channels_last: bool = False,
    device: str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Activation and gradient of a layer, (B, C, H, W)."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    f, g = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return tuple(t.to(device, dtype).contiguous(memory_format=layout) for t in (f, g))  # type: ignore[return-value]


def reads(options: dict[str, Any]) -> tuple[bool, bool]:
    """Whether the attribution reads the activation, and the gradient."""
    kind = options.get("attribution", "grad_input")
    return kind != "grad", kind != "activation"


def loss_and_gradients(
    f: Tensor, g: Tensor, heatmap: Tensor | None = None, loss_scale: float = 1.0, **options: Any
) -> dict[str, Tensor]:
    """`pal_loss` and the derivative of `loss_scale` times it by what its attribution reads.

    A loss of shape (B,) is weighed 1, 2, 3, ... first.
    """
    f, g = f.detach().requires_grad_(), g.detach().requires_grad_()
    loss = pal_fast.pal_loss(f, g, heatmap, **options)
    moved = {name: tensor for name, tensor, read in zip("fg", (f, g), reads(options), strict=True) if read}
    weights = torch.arange(1, loss.numel() + 1, device=loss.device).to(loss) * loss_scale
    gradients = torch.autograd.grad((loss.reshape(-1) * weights).sum(), list(moved.values()))
    return {"loss": loss.detach(), **dict(zip((f"d{name}" for name in moved), gradients, strict=True))}


def judged(f: Tensor, g: Tensor, heatmap: Tensor | None = None, **options: Any) -> dict[str, Tensor]:
    """The same by the reference in float64, whatever the backend and the dtype of the inputs."""
    tensors = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in options.items()}
    prior = None if heatmap is None else heatmap.double()
    return loss_and_gradients(f.double(), g.double(), prior, **{**tensors, "backend": "reference"})


def assert_agrees(f: Tensor, g: Tensor, heatmap: Tensor | None = None, **options: Any) -> None:
    """Loss and gradients agree with the float64 reference, within the bound of f's dtype; formats are kept.

    The loss is scaled until its gradients are of size one, as mixed precision training does: below 6e-5 a
    float16 gradient is subnormal, and its rounding says nothing about the kernel.
    """
    wanted = judged(f, g, heatmap, **options)
    largest = max(value.abs().amax().item() for name, value in wanted.items() if name != "loss")
    loss_scale = 2.0 ** -math.frexp(largest)[1] if largest else 1.0
    got = loss_and_gradients(f, g, heatmap, loss_scale, **options)
    for name, value in got.items():
        if name == "loss":
            assert value.dtype == reference.computing_dtype(f.dtype)
            assert_close(value, wanted[name], f.dtype, f"loss with {options}")
        else:
            assert value.dtype == f.dtype
            assert value.stride() == f.stride()
            assert_close(value, wanted[name] * loss_scale, f.dtype, f"{name} with {options}")

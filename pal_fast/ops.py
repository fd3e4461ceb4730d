"""The operators as PyTorch sees them: shapes for tracing (fake kernels), autograd, and typed calls.

Covers the loss and the heatmap, in two namespaces: `pal_fast` (compiled, CPU and CUDA) and `pal_fast_triton`; batch
normalisation is in `nn/batch_norm_operators`. The registrations are the same for both namespaces. The loss is
differentiable once: its gradient is computed by a kernel, and differentiating that raises, because a wrong second
derivative must never pass silently.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import register_fake

from pal_fast._derivative import register_derivative
from pal_fast.constants import REDUCTION
from pal_fast.options import HeatmapOptions, LossOptions
from pal_fast.reference import computing_dtype

_registered: set[str] = set()


def register(namespace: str) -> None:
    """Adds fake kernels and autograd to the four operators of `namespace`, which must already be defined."""
    if namespace in _registered:
        return
    _registered.add(namespace)
    operators = getattr(torch.ops, namespace)
    _register_heatmap(namespace, operators)
    _register_loss(namespace, operators)


def _refuse_double_backward(name: str, namespace: str) -> None:
    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise RuntimeError(
            f"{name} of the {namespace} operators is only differentiable once; for a second derivative of the loss "
            'itself use backend="reference"'
        )

    register_derivative(f"{namespace}::{name}_backward", backward)


def _register_heatmap(namespace: str, operators: Any) -> None:
    @register_fake(f"{namespace}::landmark_heatmap")
    def fake(landmarks: Tensor, visible: Any, weights: Any, height: int, width: int, *options: Any) -> Tensor:
        return landmarks.new_empty(landmarks.shape[0], height, width)

    @register_fake(f"{namespace}::landmark_heatmap_backward")
    def fake_backward(
        grad: Tensor, landmarks: Tensor, visible: Any, weights: Any, *options: Any
    ) -> tuple[Tensor, Tensor]:
        need_landmarks, need_weights = options[-2:]
        return (
            landmarks.new_empty(landmarks.shape if need_landmarks else (0,)),
            landmarks.new_empty(landmarks.shape[:2] if need_weights else (0,)),
        )

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        landmarks, visible, weights, *options = inputs
        ctx.save_for_backward(landmarks, visible, weights)
        ctx.options = options

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        landmarks, visible, weights = ctx.saved_tensors
        need_landmarks, _, need_weights = ctx.needs_input_grad[:3]
        d_landmarks, d_weights = operators.landmark_heatmap_backward.default(
            grad.contiguous(), landmarks, visible, weights, *ctx.options, need_landmarks, need_weights
        )
        empty = (None,) * len(ctx.options)
        return d_landmarks if need_landmarks else None, None, d_weights if need_weights else None, *empty

    register_derivative(f"{namespace}::landmark_heatmap", backward, setup_context=setup_context)
    _refuse_double_backward("landmark_heatmap", namespace)


def _register_loss(namespace: str, operators: Any) -> None:
    @register_fake(f"{namespace}::pal_loss")
    def fake(activation: Tensor | None, gradient: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        layer = activation if activation is not None else gradient
        assert layer is not None
        grouping, channel_count, reduction = rest[-5], rest[-4], rest[-1]
        batch, _, height, width = layer.shape
        dtype = computing_dtype(layer.dtype)
        groups = (0, 1, channel_count)[grouping]
        return (
            layer.new_empty((batch,) if REDUCTION[reduction] == "none" else (), dtype=dtype),
            layer.new_empty((batch, height, width), dtype=dtype),
            layer.new_empty((batch, groups, 3), dtype=dtype),
            layer.new_empty((batch,), dtype=dtype),
        )

    @register_fake(f"{namespace}::pal_loss_backward")
    def fake_backward(
        grad_loss: Tensor, activation: Tensor | None, gradient: Tensor | None, *rest: Any
    ) -> tuple[Tensor, Tensor]:
        need_activation, need_gradient = rest[-2:]
        layer = activation if activation is not None else gradient
        assert layer is not None
        return (
            torch.empty_like(layer) if need_activation else layer.new_empty(0),
            torch.empty_like(layer) if need_gradient else layer.new_empty(0),
        )

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, plane, coefficients, factor = output
        ctx.mark_non_differentiable(plane, coefficients, factor)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0], inputs[1], plane, coefficients, factor)
        ctx.options = inputs[12:16]  # attribution, absolute, grouping, channel_count
        ctx.arguments = len(inputs)

    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        none = (None,) * ctx.arguments
        if grad_loss is None:
            return none
        activation, gradient, *derivative = ctx.saved_tensors
        need_activation, need_gradient = ctx.needs_input_grad[:2]
        d_activation, d_gradient = operators.pal_loss_backward.default(
            grad_loss, activation, gradient, *derivative, *ctx.options, need_activation, need_gradient
        )
        return (
            d_activation if need_activation else None,
            d_gradient if need_gradient else None,
            *none[2:],
        )

    register_derivative(f"{namespace}::pal_loss", backward, setup_context=setup_context)
    _refuse_double_backward("pal_loss", namespace)


def landmark_heatmap(
    namespace: str,
    landmarks: Tensor,
    visible: Tensor | None,
    weights: Tensor | None,
    size: tuple[int, int],
    image_size: tuple[float, float],
    options: HeatmapOptions,
) -> Tensor:
    """(B, K, 2) -> (B, H, W). `landmarks` and `weights` (B, K) are contiguous float32 or float64."""
    operator = getattr(torch.ops, namespace).landmark_heatmap.default
    sigma = options.sigma_for(image_size)
    result: Tensor = operator(landmarks, visible, weights, *size, *map(float, image_size), sigma, *options.codes)
    return result


def pal_loss(
    namespace: str,
    activation: Tensor | None,
    gradient: Tensor | None,
    heatmap: Tensor | None,
    landmarks: Tensor | None,
    visible: Tensor | None,
    weights: Tensor | None,
    sample_weight: Tensor | None,
    image_size: tuple[float, float],
    options: LossOptions,
    channel_count: int,
) -> Tensor:
    """The fused loss; either `heatmap` (B, H, W) or `landmarks` (B, K, 2). Layouts as produced by `calls`."""
    operator = getattr(torch.ops, namespace).pal_loss.default
    result: tuple[Tensor, ...] = operator(
        activation,
        gradient,
        heatmap,
        landmarks,
        visible,
        weights,
        sample_weight,
        float(image_size[0]),
        float(image_size[1]),
        options.heatmap.sigma_for(image_size),
        *options.heatmap.codes,
        *options.codes,
        channel_count,
        *options.score_codes,
    )
    return result[0]

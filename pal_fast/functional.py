"""The loss, the attribution map and the heatmap as functions of tensors: checked, dispatched, differentiable."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pal_fast import _checks, dispatch, ops, reference
from pal_fast.options import AttributionOptions, HeatmapOptions, LossOptions


def landmark_heatmap(
    landmarks: Tensor,
    size: int | tuple[int, int],
    *,
    image_size: int | tuple[int, int] | None = None,
    sigma: float | None = None,
    visible: Tensor | None = None,
    weights: Tensor | None = None,
    combine: str = "sum",
    normalize: str = "none",
    backend: str | None = None,
) -> Tensor:
    """A Gaussian at each landmark, summed (the paper) or the strongest of them, at a layer's resolution.

    `h_ij = combine_k w_k exp(-((x_j - x_k)^2 + (y_i - y_k)^2) / (2 sigma^2))` at the centres of the cells,
    `x_j = (j + 0.5) IW / W - 0.5`.

    Args:
        landmarks: (B, K, 2), (x, y) in pixels of the input image, an integer being the centre of a pixel. A
            NaN or infinite landmark is dropped; one outside the frame keeps its tail.
        size: (H, W) of the heatmap, or one int for both.
        image_size: (IH, IW) of the image in pixels, or one int; None means that the heatmap has the image's
            size.
        sigma: standard deviation in pixels of the image; None is 1/16 of its longer side.
        visible: (B, K) bool, False drops a landmark.
        weights: (B, K) or (K,), finite, each Gaussian's height.
        combine: "sum" or "max".
        normalize: "none", "peak" (divide by the maximum) or "sum" (divide by the total).
        backend: None for the fastest, or "cuda", "cpu", "triton", "reference".

    Returns: (B, H, W) float32 (float64 for float64 landmarks), differentiable in `landmarks` and `weights`.

    Raises: ValueError, TypeError naming the argument; RuntimeError if `backend` cannot run.
    """
    options = HeatmapOptions(sigma, combine, normalize)
    _checks.landmarks(landmarks)
    height_width = _checks.size_pair("size", size)
    image = height_width if image_size is None else _checks.size_pair("image_size", image_size)
    _check_annotations(landmarks, visible, weights)
    return heatmap_of(landmarks, visible, weights, height_width, image, options, backend)


def heatmap_of(
    landmarks: Tensor,
    visible: Tensor | None,
    weights: Tensor | None,
    size: tuple[int, int],
    image_size: tuple[int, int],
    options: HeatmapOptions,
    backend: str | None,
) -> Tensor:
    """`landmark_heatmap` with everything checked already."""
    points, visible, weights = _landmark_tensors(landmarks, visible, weights)
    name = dispatch.choose(backend, points.device)
    if name != "reference":
        return ops.landmark_heatmap(dispatch.namespace(name), points, visible, weights, size, image_size, options)
    return reference.landmark_heatmap(
        points,
        size,
        image_size=image_size,
        sigma=options.sigma_for(image_size),
        visible=visible,
        weights=weights,
        combine=options.combine,
        normalize=options.normalize,
    )


def attribution_map(
    activation: Tensor | None,
    gradient: Tensor | None,
    *,
    attribution: str = "grad_input",
    absolute: bool = True,
    channels: str = "mean",
    channel_count: int | float | None = None,
) -> Tensor:
    """Where the layer's attribution lies: the mean over the channels that take part.

    For channels "all" and "each" this is the same map; those strategies differ in what is standardised.

    Args:
        activation, gradient: (B, C, H, W), f and g = dS/df; the one that `attribution` does not use may be
            None.
        attribution, absolute, channels, channel_count: as in `pal_loss`.

    Returns: (B, H, W) float32 (float64 for float64 inputs), differentiable any number of times.
    """
    options = AttributionOptions(attribution, absolute, channels, channel_count)
    layer = _layer_tensors(activation, gradient, options)
    a = reference.attribution(activation, gradient, attribution, absolute)
    return reference.attribution_map(a, options.count(layer.shape[1]))


def pal_loss(
    activation: Tensor | None,
    gradient: Tensor | None,
    heatmap: Tensor | None = None,
    *,
    landmarks: Tensor | None = None,
    image_size: int | tuple[int, int] | None = None,
    visible: Tensor | None = None,
    weights: Tensor | None = None,
    sample_weight: Tensor | None = None,
    attribution: str = "grad_input",
    absolute: bool = True,
    channels: str = "mean",
    channel_count: int | float | None = None,
    score: str = "pearson",
    scale: str = "sum",
    sigma: float | None = None,
    combine: str = "sum",
    normalize: str = "none",
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    """The Privileged Attribution Loss of a batch: minus the agreement of attribution and heatmap.

    Args:
        activation: (B, C, H, W), f, a layer's output; float16, bfloat16, float32 or float64. May be None for
            attribution="grad".
        gradient: (B, C, H, W), g = dS/df with S the sum of the logits, made with `create_graph=True`. May be
            None for attribution="activation".
        heatmap: (B, h, w), any prior; resized to (H, W) if it differs. Either this or `landmarks`.
        landmarks: (B, K, 2), (x, y) in pixels of the image of `image_size`, integer = pixel centre.
        image_size: (IH, IW) or one int, needed with `landmarks`.
        visible, weights: (B, K) bool and (B, K) or (K,), see `landmark_heatmap`.
        sample_weight: (B,), finite, 0 leaves a sample out.
        attribution: "grad_input" (the paper's Grad*Input), "grad" or "activation".
        absolute: abs(g) (the paper) or g.
        channels: "mean" (the map of all channels), "half" (of the first half), "all" (every element), "each"
            (every channel on its own).
        channel_count: how many channels take part, an int or a fraction in (0, 1]; always the first ones.
        score: "pearson" (bounded by 1) or "cross_correlation" (the paper's formula).
        scale: for "cross_correlation": "sum" (the paper), "mean" or "unit".
        sigma, combine, normalize: the landmarks' Gaussians, see `landmark_heatmap`.
        reduction: "mean" (sum w P / sum w), "sum" or "none" (w P).
        backend: None for the fastest, or "cuda", "cpu", "triton", "reference".

    Returns: 0-dim, or (B,) for reduction="none"; float32 (float64 for float64 inputs). Differentiable in
        `activation` and `gradient`, and in `landmarks`, `weights` and `heatmap` where they require it.

    Raises: ValueError, TypeError naming the argument; RuntimeError if `backend` cannot run.
    """
    options = LossOptions(
        AttributionOptions(attribution, absolute, channels, channel_count),
        HeatmapOptions(sigma, combine, normalize),
        score,
        scale,
        reduction,
    )
    size = None if image_size is None else _checks.size_pair("image_size", image_size)
    return loss_of(activation, gradient, heatmap, landmarks, visible, weights, sample_weight, size, options, backend)


def loss_of(
    activation: Tensor | None,
    gradient: Tensor | None,
    heatmap: Tensor | None,
    landmarks: Tensor | None,
    visible: Tensor | None,
    weights: Tensor | None,
    sample_weight: Tensor | None,
    image_size: tuple[int, int] | None,
    options: LossOptions,
    backend: str | None,
) -> Tensor:
    """`pal_loss` with its options checked already."""
    layer = _layer_tensors(activation, gradient, options.attribution)
    prior = heatmap, landmarks, visible, weights, sample_weight, image_size
    return checked_loss_of(activation, gradient, *prior, options, backend, check_call(layer, *prior, options, backend))


class Call(NamedTuple):
    """What `check_call` found out."""

    backend: str
    channel_count: int
    dtype: torch.dtype  # in which the loss is computed


def check_call(
    layer: Tensor,
    heatmap: Tensor | None,
    landmarks: Tensor | None,
    visible: Tensor | None,
    weights: Tensor | None,
    sample_weight: Tensor | None,
    image_size: tuple[int, int] | None,
    options: LossOptions,
    backend: str | None,
) -> Call:
    """Refuses, before anything is computed, what the loss of `layer` (B, C, H, W) cannot take.

    Raises: ValueError, TypeError naming the argument; RuntimeError if `backend` cannot run.
    """
    (batch, channels, _, _), device = layer.shape, layer.device
    call = Call(
        dispatch.choose(backend, device), options.attribution.count(channels), reference.computing_dtype(layer.dtype)
    )
    if (heatmap is None) == (landmarks is None):
        given = "neither" if heatmap is None else "both"
        raise ValueError(f"pass either landmarks or heatmap, got {given}")
    if sample_weight is not None:
        _checks.sample_weight(sample_weight, batch, device)
    if landmarks is not None:
        if not _are_landmarks(landmarks, batch, device):
            _checks.landmarks(landmarks, batch)
            _checks.on_device("landmarks", landmarks, "the layer's output", device)
        if image_size is None:
            raise ValueError("image_size=(height, width) of the image that landmarks refer to is needed with them")
        _check_annotations(landmarks, visible, weights)
        moving = landmarks.requires_grad or (weights is not None and weights.requires_grad)
    else:
        assert heatmap is not None
        if visible is not None or weights is not None:
            raise ValueError("visible and weights belong to landmarks; with heatmap= leave them out")
        _check_heatmap(heatmap, batch, device)
        moving = heatmap.requires_grad
    if moving and call.backend != "reference" and torch.is_grad_enabled():
        if backend is not None:
            raise RuntimeError(
                f"backend={backend!r} has no gradient for the prior (heatmap, landmarks or weights); detach it, "
                'or use backend="reference"'
            )
        return call._replace(backend="reference")
    return call


def checked_loss_of(
    activation: Tensor | None,
    gradient: Tensor | None,
    heatmap: Tensor | None,
    landmarks: Tensor | None,
    visible: Tensor | None,
    weights: Tensor | None,
    sample_weight: Tensor | None,
    image_size: tuple[int, int] | None,
    options: LossOptions,
    backend: str | None,
    call: Call,
) -> Tensor:
    """`loss_of` after `check_call`, which returned `call`."""
    layer = activation if activation is not None else gradient
    assert layer is not None
    activation = activation if options.attribution.needs_activation else None
    gradient = gradient if options.attribution.needs_gradient else None
    _, _, height, width = layer.shape
    name, count, dtype = call
    if sample_weight is not None:
        sample_weight = sample_weight.detach().to(dtype).contiguous()
    annotated = None
    if landmarks is not None:
        landmarks, visible, weights = _landmark_tensors(landmarks, visible, weights, dtype)
        if name == "reference":
            assert image_size is not None
            heatmap = heatmap_of(landmarks, visible, weights, (height, width), image_size, options.heatmap, backend)
            annotated = reference.valid_landmarks(landmarks, visible).any(1)
    else:
        assert heatmap is not None
        heatmap = _heatmap_tensor(heatmap, (height, width), dtype)
    if name == "reference":
        assert heatmap is not None
        return reference.pal_loss(
            activation,
            gradient,
            heatmap,
            annotated=annotated,
            sample_weight=sample_weight,
            attribution_kind=options.attribution.attribution,
            absolute=options.attribution.absolute,
            channels=options.attribution.channels,
            channel_count=count,
            score=options.score,
            scale=options.scale,
            reduction=options.reduction,
        )
    activation, gradient = _one_layout(activation, gradient)
    return ops.pal_loss(
        dispatch.namespace(name),
        activation,
        gradient,
        heatmap,
        landmarks,
        visible,
        weights,
        sample_weight,
        image_size or (height, width),
        options,
        count,
    )


def _layer_tensors(activation: Tensor | None, gradient: Tensor | None, options: AttributionOptions) -> Tensor:
    """Checks the two and returns one of them that is used, for its shape."""
    if activation is not None and gradient is not None and _are_layers(activation, gradient):
        return activation
    kind = options.attribution
    if options.needs_activation:
        if activation is None:
            raise ValueError(f"activation is needed for attribution={kind!r}, got None")
        _checks.layer_tensor("activation", activation)
    if options.needs_gradient:
        if gradient is None:
            raise ValueError(f"gradient is needed for attribution={kind!r}, got None")
        _checks.layer_tensor("gradient", gradient)
        if activation is not None and options.needs_activation:
            _checks.same("gradient", gradient, "activation", activation)
    layer = activation if options.needs_activation else gradient
    assert layer is not None
    return layer


def _are_layers(activation: Any, gradient: Any) -> bool:
    """Whether both are what is wanted: one look for every step, before the checks that say what is not."""
    return (
        isinstance(activation, Tensor)
        and isinstance(gradient, Tensor)
        and activation.ndim == 4
        and activation.shape == gradient.shape
        and 0 not in activation.shape[1:]
        and activation.dtype in _checks.FLOATS
        and gradient.dtype in _checks.FLOATS
        and activation.device == gradient.device
        and activation.layout == gradient.layout == torch.strided
    )


def _are_landmarks(landmarks: Any, batch: int, device: torch.device) -> bool:
    """As `_are_layers`."""
    return (
        isinstance(landmarks, Tensor)
        and landmarks.ndim == 3
        and landmarks.is_floating_point()
        and landmarks.shape[0] == batch
        and landmarks.shape[2] == 2
        and landmarks.device == device
        and landmarks.layout == torch.strided
    )


def _check_annotations(landmarks: Tensor, visible: Any, weights: Any) -> None:
    if visible is not None:
        _checks.per_landmark("visible", visible, landmarks, boolean=True)
    if weights is not None:
        _checks.per_landmark("weights", weights, landmarks, boolean=False)


def _landmark_tensors(
    landmarks: Tensor, visible: Tensor | None, weights: Tensor | None, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As the operators take them: contiguous, one computing dtype, weights (B, K)."""
    dtype = dtype or reference.computing_dtype(landmarks.dtype)
    if visible is not None:
        visible = visible.contiguous()
    if weights is not None:
        weights = weights.to(dtype).expand(landmarks.shape[:2]).contiguous()
    if landmarks.dtype != dtype or not landmarks.is_contiguous():  # as a rule neither, and a call costs more
        landmarks = landmarks.to(dtype).contiguous()
    return landmarks, visible, weights


def _check_heatmap(heatmap: Any, batch: int, device: torch.device) -> None:
    if not isinstance(heatmap, Tensor):
        raise TypeError(f"heatmap must be a tensor of shape (B, h, w), got {_checks.describe(heatmap)}")
    size = heatmap.shape[2:] if heatmap.ndim == 4 and heatmap.shape[1] == 1 else heatmap.shape[1:]
    if len(size) != 2 or heatmap.shape[0] != batch or 0 in size:
        raise ValueError(f"heatmap must have shape ({batch}, h, w), got {tuple(heatmap.shape)}")
    if heatmap.is_complex():
        raise TypeError(f"heatmap must hold real numbers, got {heatmap.dtype}")
    _checks.dense("heatmap", heatmap)
    _checks.on_device("heatmap", heatmap, "the layer's output", device)


def _heatmap_tensor(heatmap: Tensor, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """(B, h, w) or (B, 1, h, w), of any size and real dtype, as (B, H, W) of the computing type.

    Resized with antialiased bilinear interpolation, pixel centres kept (align_corners=False).
    """
    heatmap = (heatmap[:, 0] if heatmap.ndim == 4 else heatmap).to(dtype)
    if tuple(heatmap.shape[1:]) != size and heatmap.shape[0]:
        heatmap = F.interpolate(heatmap.unsqueeze(1), size, mode="bilinear", antialias=True, align_corners=False)[:, 0]
    return heatmap.contiguous()


def _one_layout(activation: Tensor | None, gradient: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Both contiguous, or both channels_last; the activation's layout decides, a copy only where it differs.

    Tokens behind a class token have their channels innermost, but gaps between the samples: their copy keeps the order
    in memory. A common dtype too: under autocast the gradient may come back in another type than the activation.
    """
    first = activation if activation is not None else gradient
    assert first is not None
    channels_last = not first.is_contiguous() and first.stride(1) == 1
    layout = torch.channels_last if channels_last else torch.contiguous_format
    if activation is not None and gradient is not None and activation.dtype != gradient.dtype:
        dtype = torch.promote_types(activation.dtype, gradient.dtype)
        activation, gradient = activation.to(dtype), gradient.to(dtype)
    return (
        None if activation is None else activation.contiguous(memory_format=layout),
        None if gradient is None else gradient.contiguous(memory_format=layout),
    )

"""The loss, the attribution map and the heatmap as functions of tensors: checked, dispatched, differentiable."""

from __future__ import annotations

from torch import Tensor

from pal_fast import _checks, reference
from pal_fast.calls import (
    Prior,
    check_annotations,
    check_call,
    checked_loss_of,
    heatmap_of,
    layer_tensors,
    one_dtype,
    refuse_landmark_options,
)
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
    """A Gaussian at each landmark, combined by sum (the paper) or maximum, at a layer's resolution.

    `h_ij = combine_k w_k exp(-((x_j - x_k)^2 + (y_i - y_k)^2) / (2 sigma^2))` at the centres of the cells,
    `x_j = (j + 0.5) IW / W - 0.5`.

    Args:
        landmarks: (B, K, 2), (x, y) in pixels of the input image; integers are pixel centres. A NaN or infinite
            landmark is dropped; one outside the frame keeps its tail.
        size: (H, W) of the heatmap, or one int for both.
        image_size: (IH, IW) of the image in pixels, or one int; None means the size of the heatmap.
        sigma: standard deviation in image pixels; None is 1/16 of the image's longer side.
        visible: (B, K) bool, False drops a landmark.
        weights: (B, K) or (K,), finite: the height of each Gaussian.
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
    check_annotations(landmarks, visible, weights)
    return heatmap_of(landmarks, visible, weights, height_width, image, options, backend)


def attribution_map(
    activation: Tensor | None,
    gradient: Tensor | None,
    *,
    attribution: str = "grad_input",
    absolute: bool = True,
    channels: str = "mean",
    channel_count: int | float | None = None,
) -> Tensor:
    """The layer's attribution map: the mean over the channels that take part.

    For channels "all" and "each" this is the same map; those strategies differ in what is standardised.

    Args:
        activation, gradient: (B, C, H, W), f and g = dS/df; the one that `attribution` does not use may be
            None.
        attribution, absolute, channels, channel_count: as in `pal_loss`.

    Returns: (B, H, W) float32 (float64 for float64 inputs), differentiable any number of times.
    """
    options = AttributionOptions(attribution, absolute, channels, channel_count)
    layer = layer_tensors(activation, gradient, options)
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
        gradient: (B, C, H, W), g = dS/df with S the sum of the logits, computed with `create_graph=True`. May be
            None for attribution="activation".
        heatmap: (B, h, w), any prior; resized to (H, W) if it differs. Either this or `landmarks`.
        landmarks: (B, K, 2), (x, y) in pixels of the image of `image_size`, integer = pixel centre.
        image_size: (IH, IW) or one int, needed with `landmarks`; refused beside a heatmap, as are `sigma`, `combine`,
            `normalize`, `visible` and `weights`.
        visible, weights: (B, K) bool and (B, K) or (K,), see `landmark_heatmap`.
        sample_weight: (B,), finite, without a gradient; 0 leaves a sample out.
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
    if heatmap is not None and landmarks is None:
        refuse_landmark_options(heatmap, size, options.heatmap)
    layer = layer_tensors(activation, gradient, options.attribution)
    if options.attribution.needs_activation and options.attribution.needs_gradient:
        activation, gradient = one_dtype(activation, gradient)
        assert activation is not None
        layer = activation
    prior = Prior(heatmap, landmarks, visible, weights, sample_weight, size)
    return checked_loss_of(activation, gradient, prior, options, backend, check_call(layer, prior, options, backend))

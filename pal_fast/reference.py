"""The reference implementation: every formula of the method in plain PyTorch, differentiable any number of times.

Source of the method: Bonnard, Dapogny, Dhombres, Bailly, "Privileged Attribution Constrained Deep Networks
for Facial Expression Recognition", ICPR 2022, arXiv 2203.12905. Where the paper leaves a choice, it is an option, and
the docstring says which reading it is.

The functions here trust their arguments and raise no errors of their own: `pal_fast.calls` checks them, and its
errors name what was given. Coordinates, sigma and image sizes are in pixels. Attributions have the units of logits
("grad_input") or of the layer, which cancel in the standardisation; scores have no unit. float16 and bfloat16 are
computed in float32, float64 in float64, and losses are returned in that computing dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pal_fast.constants import FLAT_TOLERANCE, GROUPING_OF


def computing_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a tensor of `dtype` is accumulated: float64 for float64, float32 for the rest."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def widest_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 on a kind of device that has no float64 (Apple's MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def cell_centres(cells: int, image_length: float, like: Tensor) -> Tensor:
    """The centres of a map's cells along one axis, in image pixels.

    Our choice: the layer's cells divide the image evenly. `x_j = (j + 0.5) * image_length / cells - 0.5`: an integer
    coordinate is the centre of a pixel.
    Returns: (cells,) of `like`'s dtype and device.
    """
    index = torch.arange(cells, dtype=like.dtype, device=like.device)
    return (index + 0.5) * (image_length / cells) - 0.5


def valid_landmarks(landmarks: Tensor, visible: Tensor | None) -> Tensor:
    """Which landmarks take part: those finite in both coordinates and not masked out. Our choice.

    Args: landmarks (B, K, 2); visible (B, K) bool or None.
    Returns: (B, K) bool.
    """
    valid = torch.isfinite(landmarks).all(-1)
    return valid if visible is None else valid & visible


def landmark_heatmap(
    landmarks: Tensor,
    size: tuple[int, int],
    *,
    image_size: tuple[float, float],
    sigma: float,
    visible: Tensor | None = None,
    weights: Tensor | None = None,
    combine: str = "sum",
    normalize: str = "none",
) -> Tensor:
    """The paper's prior: a Gaussian at each landmark, summed. Maximum, weights and normalisations are our additions.

    `h_ij = combine_k w_k exp(-((x_j - x_k)^2 + (y_i - y_k)^2) / (2 sigma^2))`, evaluated at the centres of
    the map's cells. A sum of Gaussians is separable, so no (B, K, H, W) tensor is built.

    Args:
        landmarks: (B, K, 2) float, (x, y) in pixels of the image of `image_size`, integer = pixel centre.
        size: (H, W) of the map.
        image_size: (IH, IW) in pixels, the frame of `landmarks` and `sigma`.
        sigma: standard deviation of each Gaussian, in image pixels.
        visible: (B, K) bool; False drops a landmark. NaN and infinite landmarks are always dropped.
        weights: (B, K) or (K,), the height of each Gaussian.
        combine: "sum" (the paper) or "max" over the remaining landmarks; 0 if there are none.
        normalize: "peak" divides by the map's maximum, "sum" by its total; a map whose divisor is 0 is unchanged.

    Returns: (B, H, W) in the computing dtype of `landmarks`, differentiable in `landmarks` and `weights`.
    """
    points = landmarks.to(computing_dtype(landmarks.dtype))
    batch, count = points.shape[:2]
    height, width = size
    valid = valid_landmarks(points, visible)
    points = torch.where(valid.unsqueeze(-1), points, 0.0)
    strength = points.new_ones(batch, count) if weights is None else weights.to(points).expand(batch, count)

    x = cell_centres(width, image_size[1], points)  # (W,)
    y = cell_centres(height, image_size[0], points)  # (H,)
    gx = torch.exp(-((x - points[..., 0:1]) ** 2) / (2 * sigma**2))  # (B, K, W)
    gy = torch.exp(-((y - points[..., 1:2]) ** 2) / (2 * sigma**2))  # (B, K, H)
    gy = gy * strength.unsqueeze(-1)

    if combine == "sum":
        heatmap = torch.einsum("bkh,bkw->bhw", gy * valid.unsqueeze(-1), gx)
    else:
        heatmap = points.new_full((batch, height, width), -torch.inf)
        for k in range(count):
            candidate = gy[:, k, :, None] * gx[:, k, None, :]  # (B, H, W)
            wins = valid[:, k, None, None] & (candidate > heatmap)
            heatmap = torch.where(wins, candidate, heatmap)
        heatmap = torch.where(valid.any(1)[:, None, None], heatmap, 0.0)

    if normalize == "none":
        return heatmap
    divisor = heatmap.amax((1, 2), keepdim=True) if normalize == "peak" else heatmap.sum((1, 2), keepdim=True)
    return heatmap / torch.where(divisor == 0, 1.0, divisor)


def attribution(activation: Tensor | None, gradient: Tensor | None, kind: str, absolute: bool) -> Tensor:
    """The attribution of every element of the layer's output.

    "grad_input" is the paper's Grad*Input, `abs(g) * f` (`g * f` without `absolute`); "grad" its Grad, `abs(g)` or `g`;
    "activation" is `f` itself, the baseline of forward-feature alignment. The derivative of abs at 0 is 0.

    Args: activation f, gradient g = dS/df, both (B, C, H, W); the one that `kind` does not use may be None.
    Returns: (B, C, H, W) in the computing dtype.
    """
    if kind == "activation":
        assert activation is not None
        return activation.to(computing_dtype(activation.dtype))
    assert gradient is not None
    g = gradient.to(computing_dtype(gradient.dtype))
    g = g.abs() if absolute else g
    if kind == "grad":
        return g
    assert activation is not None
    return g * activation.to(g.dtype)


def _exponent(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """A power of two near the largest magnitude over `dims` (kept), a constant for autograd; 1 for zeros.

    Dividing by it is exact and prevents squares from underflowing or overflowing, which makes the loss independent of
    the attribution's scale.
    """
    largest = values.detach().abs().amax(dims, keepdim=True)
    _, exponent = torch.frexp(largest)
    usable = torch.isfinite(largest) & (largest > 0)
    return torch.ldexp(torch.ones_like(largest), torch.where(usable, exponent, 0))


def standardise(values: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """`(values - mean) / std` with population moments over `dims`, and which groups are flat.

    The paper's standardisation of the attribution, its standard deviation read with 1/N (`scale="unit"` is the other
    reading). A flat group, `std <= 1e-5 * rms` or all zero, becomes zeros with zero gradient: this resolves 0/0 without
    an epsilon, which would break the invariance to scale.

    Args: values in the computing dtype; dims over which one group extends.
    Returns: z of `values`' shape; flat, with `dims` kept as 1.
    """
    scaled = values / _exponent(values, dims)
    mean = scaled.mean(dims, keepdim=True)
    centred = scaled - mean
    variance = centred.square().mean(dims, keepdim=True)
    flat = variance.detach() <= FLAT_TOLERANCE**2 * scaled.detach().square().mean(dims, keepdim=True)
    z = centred / torch.where(flat, 1.0, variance).sqrt()
    return torch.where(flat, 0.0, z), flat


def correlation(maps: Tensor, heatmap: Tensor) -> tuple[Tensor, Tensor]:
    """Pearson's correlation of maps and heatmaps, (B, H, W) in the computing dtype: minus the score "pearson" of a map.

    Returns: (B,), 0 where undefined; (B,) bool, whether it is defined: neither of the two is flat.
    """
    z, flat = standardise(maps, (1, 2))
    zh, flat_heatmap = standardise(heatmap, (1, 2))
    return (z * zh).mean((1, 2)), ~(flat | flat_heatmap)[:, 0, 0]


def attribution_map(a: Tensor, count: int) -> Tensor:
    """`m_ij = (1/n) sum_c a_cij` over the first `count` channels: the map of strategies "mean" and "half".

    Args: a (B, C, H, W), the attribution; count, from 1 to C. Returns: (B, H, W), `a`'s units and dtype.
    """
    return a[:, :count].mean(1)


def pal_scores(
    a: Tensor,
    heatmap: Tensor,
    *,
    channels: str = "mean",
    channel_count: int,
    score: str = "pearson",
    scale: str = "sum",
) -> Tensor:
    """Each sample's loss: minus the agreement of the standardised attribution with the heatmap.

    "cross_correlation" with scale "sum" is the paper's formula as written, `-sum_ij z_ij h_ij`; "mean"
    divides by the number of terms, "unit" by its square root. "pearson" also standardises the heatmap and
    divides by the number of terms: bounded by 1, the same gradient direction for each sample.

    Args:
        a: (B, C, H, W), the attribution.
        heatmap: (B, H, W).
        channels: "mean" and "half" standardise the mean map over (i, j); "all" every a_cij over (c, i, j),
            the paper's equation read literally; "each" every channel on its own, its score averaged.
        channel_count: n, the first channels that take part.
        score, scale: see above; `scale` has no effect on "pearson".

    Returns: (B,), without unit; a flat group scores 0.
    """
    h = heatmap.to(a.dtype).unsqueeze(1)  # (B, 1, H, W)
    if score == "pearson":
        h, _ = standardise(h, (1, 2, 3))
    grouping = GROUPING_OF[channels]
    if grouping == "map":
        z, _ = standardise(attribution_map(a, channel_count).unsqueeze(1), (1, 2, 3))
    else:
        z, _ = standardise(a[:, :channel_count], (1, 2, 3) if grouping == "all" else (2, 3))
    cells = z.shape[2] * z.shape[3]
    terms = z.shape[1] * cells if grouping == "all" else cells
    if score == "pearson" or scale == "mean":
        factor = 1 / terms
    else:
        factor = 1.0 if scale == "sum" else terms**-0.5
    # The standardised attribution sums to zero: centring the heatmap leaves the sum, and its offset costs no accuracy.
    h = h - h.mean((1, 2, 3), keepdim=True)
    groups = z.shape[1] if grouping == "each" else 1
    return -(z * h).sum((1, 2, 3)) * (factor / groups)


def sample_weights(heatmap: Tensor, *, score: str, annotated: Tensor | None, sample_weight: Tensor | None) -> Tensor:
    """`w_b`: the caller's weight (default 1), and 0 for a sample that cannot be scored. Our choice.

    A sample cannot be scored without a valid landmark (`annotated`, (B,) bool), with a non-finite heatmap or, under
    "pearson", with a flat heatmap.
    Returns: (B,).
    """
    values = heatmap.detach()
    valid = torch.isfinite(values).all(2).all(1)
    if annotated is not None:
        valid = valid & annotated
    if score == "pearson":
        _, flat = standardise(torch.where(valid[:, None, None], values, 0.0), (1, 2))
        valid = valid & ~flat[:, 0, 0]
    weight = values.new_ones(values.shape[0]) if sample_weight is None else sample_weight.to(values)
    return torch.where(valid, weight, 0.0)


def reduce_scores(scores: Tensor, weight: Tensor, reduction: str) -> Tensor:
    """The batch's loss: "mean" is `sum w P / sum w`, "sum" `sum w P`, "none" `w P`.

    A sample of weight 0 has exactly zero gradient; without any valid sample the loss is 0, still attached to the graph.

    Args: scores and weight, both (B,). Returns: 0-dim, or (B,) for "none".
    """
    weighted = torch.where(weight == 0, 0.0, scores * weight)
    if reduction == "none":
        return weighted
    total = weighted.sum()
    if reduction == "sum":
        return total
    mass = weight.sum()
    return torch.where(mass == 0, 0.0, total / torch.where(mass == 0, 1.0, mass))


def pal_loss(
    activation: Tensor | None,
    gradient: Tensor | None,
    heatmap: Tensor,
    *,
    annotated: Tensor | None = None,
    sample_weight: Tensor | None = None,
    attribution_kind: str = "grad_input",
    absolute: bool = True,
    channels: str = "mean",
    channel_count: int,
    score: str = "pearson",
    scale: str = "sum",
    reduction: str = "mean",
) -> Tensor:
    """The Privileged Attribution Loss of a batch, from the layer's output, its gradient and the prior.

    The paper's loss is score "cross_correlation" with scale "sum"; the other options are those of the functions above.

    Args:
        activation, gradient: (B, C, H, W), float16 to float64; the one that the attribution does not use may be None.
        heatmap: (B, H, W), finite or not; see `sample_weights` for samples that are not scored.
        annotated: (B,) bool: whether the sample has any valid landmark.
        sample_weight: (B,), finite.
        channel_count: n, from 1 to C.

    Returns: 0-dim, or (B,) for reduction "none"; float32, or float64 for float64 inputs.
    """
    layer = activation if gradient is None or attribution_kind == "activation" else gradient
    assert layer is not None
    h = heatmap.to(computing_dtype(layer.dtype))
    weight = sample_weights(h, score=score, annotated=annotated, sample_weight=sample_weight)
    usable = weight != 0

    # Replaced before the arithmetic, not after it: 0 * NaN in a backward pass is NaN.
    def used(values: Tensor | None) -> Tensor | None:
        return None if values is None else torch.where(usable[:, None, None, None], values[:, :channel_count], 0.0)

    a = attribution(used(activation), used(gradient), attribution_kind, absolute)
    h = torch.where(usable[:, None, None], h, 0.0)
    scores = pal_scores(a, h, channels=channels, channel_count=channel_count, score=score, scale=scale)
    return reduce_scores(scores, weight, reduction)

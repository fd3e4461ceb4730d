"""One call of the loss or the heatmap: checks the arguments, then computes with a backend."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pal_fast import _checks, dispatch, ops, reference
from pal_fast.messages import describe
from pal_fast.options import AttributionOptions, HeatmapOptions, LossOptions


class Prior(NamedTuple):
    """What the attribution is compared with, and the weight of each sample."""

    heatmap: Tensor | None = None
    landmarks: Tensor | None = None
    visible: Tensor | None = None
    weights: Tensor | None = None
    sample_weight: Tensor | None = None
    image_size: tuple[int, int] | None = None


class Call(NamedTuple):
    """The result of `check_call`."""

    backend: str
    channel_count: int
    dtype: torch.dtype  # in which the loss is computed


def check_call(layer: Tensor, prior: Prior, options: LossOptions, backend: str | None) -> Call:
    """Refuses arguments that the loss of `layer` (B, C, H, W) does not support, before anything is computed.

    Raises: ValueError, TypeError naming the argument; RuntimeError if `backend` cannot run.
    """
    (batch, channels, _, _), device = layer.shape, layer.device
    heatmap, landmarks, visible, weights, sample_weight, image_size = prior
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
            raise ValueError("landmarks need image_size=(height, width), the size of the image that they refer to")
        check_annotations(landmarks, visible, weights)
        moving = landmarks.requires_grad or (weights is not None and weights.requires_grad)
    else:
        assert heatmap is not None
        if visible is not None or weights is not None:
            raise ValueError("visible and weights belong to landmarks; with heatmap= leave them out")
        _check_heatmap(heatmap, batch, device)
        moving = heatmap.requires_grad
    # Under jvp the operator refuses the tangent itself.
    if backend not in (None, "reference") and dispatch.transform() not in ("", "Jvp"):
        raise RuntimeError(
            f"backend={backend!r} cannot run inside a transform of torch.func (grad, vmap): leave backend out, or use "
            'backend="reference"'
        )
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
    prior: Prior,
    options: LossOptions,
    backend: str | None,
    call: Call,
) -> Tensor:
    """`pal_loss` after `check_call`, which returned `call`."""
    activation = activation if options.attribution.needs_activation else None
    gradient = gradient if options.attribution.needs_gradient else None
    layer = activation if activation is not None else gradient
    assert layer is not None
    _, _, height, width = layer.shape
    name, count, dtype = call
    heatmap, landmarks, visible, weights, sample_weight, image_size = prior
    if sample_weight is not None:
        sample_weight = sample_weight.to(dtype).contiguous()
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
        dispatch.namespace(name, layer.device),
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


def heatmap_of(
    landmarks: Tensor,
    visible: Tensor | None,
    weights: Tensor | None,
    size: tuple[int, int],
    image_size: tuple[int, int],
    options: HeatmapOptions,
    backend: str | None,
) -> Tensor:
    """`landmark_heatmap` for arguments that are already checked."""
    points, visible, weights = _landmark_tensors(landmarks, visible, weights)
    name = dispatch.choose(backend, points.device)
    if name != "reference":
        return ops.landmark_heatmap(
            dispatch.namespace(name, points.device), points, visible, weights, size, image_size, options
        )
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


def layer_tensors(activation: Tensor | None, gradient: Tensor | None, options: AttributionOptions) -> Tensor:
    """Checks both and returns one that is used, for its shape."""
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
    """Whether both are valid: one fast test per step, before the detailed checks that name what is wrong."""
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
    """A fast test, like `_are_layers`."""
    return (
        isinstance(landmarks, Tensor)
        and landmarks.ndim == 3
        and landmarks.dtype in _checks.FLOATS
        and landmarks.shape[0] == batch
        and landmarks.shape[2] == 2
        and landmarks.device == device
        and landmarks.layout == torch.strided
    )


_NO_OPTIONS = HeatmapOptions()


def refuse_landmark_options(heatmap: Any, image_size: tuple[int, int] | None, options: HeatmapOptions) -> None:
    """Raises ValueError for options of landmarks given with a heatmap, which is then usually landmarks by mistake."""
    given = [] if image_size is None else ["image_size"]
    if options != _NO_OPTIONS:
        names = ("sigma", "combine", "normalize")
        given += [name for name in names if getattr(options, name) != getattr(_NO_OPTIONS, name)]
    if given:
        slip = isinstance(heatmap, Tensor) and heatmap.ndim == 3 and heatmap.shape[2] == 2
        points = f" (its shape {tuple(heatmap.shape)} is that of landmarks)" if slip else ""
        raise ValueError(
            f"{' and '.join(given)} belong{'s' if len(given) == 1 else ''} to landmarks, but a heatmap was given"
            f"{points}: pass landmarks by name, landmarks=..., or leave {' and '.join(given)} out"
        )


def check_annotations(landmarks: Tensor, visible: Any, weights: Any) -> None:
    if visible is not None:
        _checks.per_landmark("visible", visible, landmarks, boolean=True)
    if weights is not None:
        _checks.per_landmark("weights", weights, landmarks, boolean=False)


def _landmark_tensors(
    landmarks: Tensor, visible: Tensor | None, weights: Tensor | None, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The tensors as the operators require them: contiguous, in the computing dtype, weights (B, K)."""
    dtype = dtype or reference.computing_dtype(landmarks.dtype)
    if visible is not None:
        visible = visible.contiguous()
    if weights is not None:
        weights = weights.to(dtype).expand(landmarks.shape[:2]).contiguous()
    if landmarks.dtype != dtype or not landmarks.is_contiguous():  # usually neither; testing is cheaper than calling
        landmarks = landmarks.to(dtype).contiguous()
    return landmarks, visible, weights


def _check_heatmap(heatmap: Any, batch: int, device: torch.device) -> None:
    if not isinstance(heatmap, Tensor):
        raise TypeError(f"heatmap must be a tensor of shape (B, h, w), got {describe(heatmap)}")
    size = heatmap.shape[2:] if heatmap.ndim == 4 and heatmap.shape[1] == 1 else heatmap.shape[1:]
    if len(size) != 2 or heatmap.shape[0] != batch or 0 in size:
        raise ValueError(f"heatmap must have shape ({batch}, h, w), got {tuple(heatmap.shape)}")
    if heatmap.is_complex():
        raise TypeError(f"heatmap must hold real numbers, got {heatmap.dtype}")
    _checks.dense("heatmap", heatmap)
    _checks.on_device("heatmap", heatmap, "the layer's output", device)


def _heatmap_tensor(heatmap: Tensor, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """(B, h, w) or (B, 1, h, w), of any size and real dtype, as (B, H, W) in the computing dtype.

    Resized by antialiased bilinear interpolation with align_corners=False.
    """
    heatmap = (heatmap[:, 0] if heatmap.ndim == 4 else heatmap).to(dtype)
    if tuple(heatmap.shape[1:]) != size and heatmap.shape[0]:
        heatmap = F.interpolate(heatmap.unsqueeze(1), size, mode="bilinear", antialias=True, align_corners=False)[:, 0]
    return heatmap.contiguous()


def one_dtype(activation: Tensor | None, gradient: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Both in the wider of their dtypes."""
    if activation is None or gradient is None or activation.dtype == gradient.dtype:
        return activation, gradient
    dtype = torch.promote_types(activation.dtype, gradient.dtype)
    return activation.to(dtype), gradient.to(dtype)


def _one_layout(activation: Tensor | None, gradient: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Both contiguous or both channels_last, as the activation is; copies only what differs. Also one common dtype.

    Tokens after a class token have their channels innermost, but gaps between samples: their copy keeps the memory
    order. Under autocast the gradient's dtype may differ from the activation's.
    """
    first = activation if activation is not None else gradient
    assert first is not None
    channels_last = not first.is_contiguous() and first.stride(1) == 1
    layout = torch.channels_last if channels_last else torch.contiguous_format
    activation, gradient = one_dtype(activation, gradient)
    return (
        None if activation is None else activation.contiguous(memory_format=layout),
        None if gradient is None else gradient.contiguous(memory_format=layout),
    )

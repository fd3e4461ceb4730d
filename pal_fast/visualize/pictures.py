"""Images, coloured maps and maps over images as arrays, pixel for pixel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pal_fast import _checks
from pal_fast.messages import describe


def picture(image: Tensor | np.ndarray) -> np.ndarray:
    """An image as (H, W, 3) float32 in [0, 1].

    Raises: ValueError for another shape, or floats that are not finite or outside [0, 1].
    """
    if isinstance(image, Tensor) and image.dtype == torch.bfloat16:
        image = image.float()  # NumPy has no such type
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    given = array.shape
    if isinstance(image, Tensor) and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3):
        raise ValueError(f"image must be a (3, H, W) or (1, H, W) tensor or an (H, W, 3) or (H, W) array, got {given}")
    array = np.broadcast_to(array, (*array.shape[:2], 3))
    if array.dtype == np.uint8:
        return (array / np.float32(255)).astype(np.float32)
    array = array.astype(np.float32)
    if not (np.isfinite(array).all() and array.min(initial=0) >= -1e-3 and array.max(initial=0) <= 1 + 1e-3):
        raise ValueError(
            f"image must hold values in [0, 1] or uint8, got {array.min():.3g} to {array.max():.3g}; "
            "undo a normalisation with unnormalise(images, mean, std)"
        )
    return array.clip(0, 1)


def unnormalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(..., C, H, W) images from a network's normalised input, clamped to [0, 1]; mean and std have C entries.

    Raises: TypeError, ValueError naming the argument.
    """
    _checks.instance("images", images, Tensor, "a tensor of shape (..., C, H, W)")
    if images.ndim < 3 or not images.is_floating_point():
        raise ValueError(f"images must have shape (..., C, H, W) and a floating-point dtype, got {describe(images)}")
    _checks.per_channel("mean", mean, images.shape[-3])
    _checks.per_channel("std", std, images.shape[-3])
    shape = (-1, 1, 1)
    return (images * images.new_tensor(std).view(shape) + images.new_tensor(mean).view(shape)).clamp(0, 1)


def colour_map(values: Tensor, *, limits: tuple[float, float] | None = None) -> np.ndarray:
    """Colours a map (h, w) as (h, w, 4) float RGBA in [0, 1]; the stronger the value, the more opaque.

    A map of one sign goes from dark and transparent at its minimum to bright and opaque at its maximum; a map with
    both signs goes from blue through transparent at zero to red. Non-finite values and flat maps are transparent.

    Args: limits: the values at the two ends of the scale; None takes the map's own.
    Raises: TypeError, ValueError naming the argument.
    """
    from matplotlib import colormaps

    _check_map(values, limits)
    array = values.detach().float().cpu().numpy()
    finite = np.isfinite(array)
    low, high = limits or (array[finite].min(initial=np.inf), array[finite].max(initial=-np.inf))
    signed = low < 0 < high
    if signed:
        low, high = -max(-low, high), max(-low, high)
    if not high > low:
        return np.zeros((*array.shape, 4))
    share = ((np.where(finite, array, low) - low) / (high - low)).clip(0, 1)
    strength = np.abs(2 * share - 1) if signed else share
    colours: np.ndarray = colormaps["RdBu_r" if signed else "inferno"](share)
    colours[..., 3] = np.where(finite, strength, 0)
    return colours


def _check_map(values: Tensor, limits: tuple[float, float] | None) -> None:
    """Raises: TypeError, ValueError unless `values` is a real map of at least one cell, and `limits` two numbers."""
    _checks.tensor("values", values, "(h, w)", 2)
    if values.is_complex() or values.numel() == 0:
        raise ValueError(f"values must be real numbers for at least one cell, got {describe(values)}")
    if limits is not None:
        if not isinstance(limits, (tuple, list)) or len(limits) != 2:
            raise TypeError(f"limits must be two numbers, (low, high), got {describe(limits)}")
        for number in limits:
            _checks.finite_number("each of limits", number)


def overlay(
    image: Tensor | np.ndarray,
    values: Tensor,
    *,
    opacity: float = 0.75,
    limits: tuple[float, float] | None = None,
) -> np.ndarray:
    """A coloured map (h, w) over the image in grey, (H, W, 3) float32 in [0, 1].

    The map is resized bilinearly. It covers the image everywhere, most where it is strongest, so that a bright
    place is a high value and the face can still be seen.

    Args:
        image: see `picture`.
        opacity: of the map's maximum, 0 to 1.
        limits: the map's values that get the darkest and the brightest colour; None takes its own minimum and
            maximum, so pictures of different maps can be compared in location only, not in strength.

    Raises: TypeError, ValueError naming the argument.
    """
    _checks.number_within("opacity", opacity, 0, 1)
    _check_map(values, limits)
    below = picture(image)
    whole = torch.nn.functional.interpolate(
        values.detach().float()[None, None], below.shape[:2], mode="bilinear", align_corners=False
    )[0, 0]
    colours = colour_map(whole, limits=limits)
    grey = below @ np.array([0.299, 0.587, 0.114], np.float32)
    below = 0.25 * below + 0.75 * grey[..., None]
    cover = opacity * (0.45 + 0.55 * colours[..., 3:])
    if not colours.any():
        return below.astype(np.float32)
    return (below * (1 - cover) + colours[..., :3] * cover).clip(0, 1).astype(np.float32)

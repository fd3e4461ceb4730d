"""Checks of the first batch's values, with a synchronisation: what would make every loss useless, step after step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pal_fast import reference
from pal_fast.attribution.graph_checks import unreached
from pal_fast.attribution.targets import Target, counted
from pal_fast.calls import Prior
from pal_fast.options import HeatmapOptions
from pal_fast.suspect_landmarks import coincide, look_normalised, lying, normalised_text, span
from pal_fast.warn import FlatLossWarning, warn

#: In sigmas: a landmark further outside the image leaves less than a hundredth of its Gaussian inside.
_NEAR = 3.0
#: Fewer do not show in which order their coordinates are: one may lie on its side.
_FACES = 4


def can_tell(prior: Prior) -> bool:
    """Whether this batch can be judged: not if no sample has a landmark, nor while a CUDA graph is captured."""
    if prior.landmarks is None:
        return True
    if prior.landmarks.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    return bool(reference.valid_landmarks(prior.landmarks, prior.visible).any())


def _warn_of_landmarks(prior: Prior, options: HeatmapOptions) -> bool:
    """Warns if the valid landmarks cannot be (x, y) in pixels of the image. Returns whether it did."""
    landmarks, image_size = prior.landmarks, prior.image_size
    if landmarks is None or image_size is None:
        return False
    valid = reference.valid_landmarks(landmarks, prior.visible)
    if not bool(valid.any()):
        return False
    alike = coincide(landmarks.detach(), valid)
    if bool(alike.any()):
        warn(
            f"the landmarks of {int(alike.sum())} of {int(valid.any(1).sum())} annotated samples of this batch lie in "
            "one point each, as for faces that were not found: give NaN for these, and they are left out"
        )
        valid = valid & ~alike[:, None]
        if not bool(valid.any()):
            return True
    points = landmarks.detach()[valid].float()  # (N, 2)
    height, width = image_size
    image = f"the model's input image, {height} x {width} (height x width) here"
    if bool(look_normalised(landmarks.detach(), valid, image_size)[valid.any(1)].all()):
        warn(normalised_text("all landmarks of every annotated sample", points, image))
        return True
    return _warn_of_distant(points, options.sigma_for(image_size), image_size, image) or _warn_of_exchanged(
        landmarks.detach().float().masked_fill(~valid[..., None], torch.nan)
    )


def _warn_of_distant(points: Tensor, sigma: float, image_size: tuple[int, int], image: str) -> bool:
    """Warns if most landmarks (N, 2) are too far from the image for their Gaussians. Returns whether it did."""
    height, width = image_size
    low, high = -_NEAR * sigma, points.new_tensor([width - 1, height - 1]) + _NEAR * sigma
    near = int(((points >= low) & (points <= high)).all(1).sum())
    if 2 * near >= len(points):
        return False
    few, way_out = "no landmark of this batch lies", ""
    if near:
        few = f"only {near} of the {len(points)} landmarks of this batch lie"
        way_out = "; give NaN for those that are cropped away"
    warn(
        f"{few} in the image or near it ({span(points)}): they must be in pixels of {image}, after resizing and "
        f"cropping{way_out}"
    )
    return True


def _warn_of_exchanged(landmarks: Tensor) -> bool:
    """Warns if the faces of (B, K, 2), NaN for missing ones, lie on their side. Returns whether it did."""
    wrong, judged = lying(landmarks)
    if judged < _FACES or 2 * wrong <= judged:
        return False
    warn(
        f"in {wrong} of {judged} faces of this batch the mouth (landmarks 48-67) does not lie below the eyes (36-47): "
        "landmarks must be (x, y); landmarks[..., [1, 0]] exchanges x and y"
    )
    return True


def _warn_of_sigma(options: HeatmapOptions, image_size: tuple[int, int] | None) -> None:
    """Warns of a sigma that was meant as a share of the image: below a pixel, and far below the default."""
    sigma = options.sigma
    if sigma is None or image_size is None:
        return
    default = HeatmapOptions().sigma_for(image_size)
    if sigma < min(1, default / 4):
        warn(
            f"sigma={sigma:.4g} is in pixels of the model's input image, {image_size[0]} x {image_size[1]} here, and "
            "Gaussians as narrow as that fall between the layer's cells; the default, 1/16 of the image's longer side, "
            f"is {default:.4g}"
        )


def warn_of_unused_labels(target: Target) -> None:
    warn(
        f"labels have no effect with target={target!r}: pass target='label' to the loss to attribute the logit of each "
        "sample's own class, or leave labels out of its call"
    )


def warn_of_prior(prior: Prior, options: HeatmapOptions, logits: Tensor, labels: Tensor | None) -> bool:
    """Warns if no label (if labels matter) or no landmark is usable. Returns whether it did.

    Warns of a sigma that cannot be meant, too, which does not count.
    """
    if prior.landmarks is not None:
        _warn_of_sigma(options, prior.image_size)
    return (labels is not None and _warn_of_labels(logits, labels)) or _warn_of_landmarks(prior, options)


def _warn_of_labels(logits: Tensor, labels: Tensor) -> bool:
    """Warns if no label is one of the classes. Returns whether it did."""
    if not labels.numel() or bool(counted(logits, labels, None).any()):
        return False
    warn(
        f"target='label' and no label of this batch is one of the classes 0 to {logits.shape[1] - 1} (the labels go "
        f"from {labels.min().item()} to {labels.max().item()}): no sample counts, and the loss is 0"
    )
    return True


def warn_if_useless(
    model: nn.Module,
    name: str,
    activation: Tensor,
    gradient: Tensor | None,
    loss: Tensor,
    prior: Prior,
    reduction: str,
) -> None:
    """Warns if g, (B, C, H, W), is zero everywhere, or else if the layer's loss is 0 for every sample that counts."""
    if gradient is not None and gradient.numel() and not bool((gradient.detach() != 0).any()):
        warn(unreached(model, name))
    elif not bool(loss.detach().any()):
        weights = _counting_weights(len(activation), prior)
        if reduction == "mean" and _cancel(weights):
            warn(
                f"sample_weight adds up to 0 over the samples of this batch that count ({weights.tolist()}), and the "
                "weighted mean is then 0: give weights of 0 or more, or use reduction='sum'"
            )
        elif bool(weights.any()):
            warn(_flat(name, activation), FlatLossWarning)


def _counting_weights(batch: int, prior: Prior) -> Tensor:
    """(B,) on the CPU, 0 for a sample without landmarks."""
    given = prior.sample_weight
    weights = torch.ones(batch) if given is None else given.detach().to("cpu", torch.float32)
    if prior.landmarks is not None:
        weights = weights * reference.valid_landmarks(prior.landmarks, prior.visible).any(1).cpu()
    return weights


def _cancel(weights: Tensor) -> bool:
    """Whether they add up to 0, up to rounding, without being 0."""
    mass = float(weights.abs().sum())
    return mass > 0 and abs(float(weights.sum())) <= 1e-6 * mass


def _flat(name: str, activation: Tensor) -> str:
    height, width = activation.shape[2:]
    if height * width == 1:
        why = "its map has a single cell, in which nothing can be aligned: choose an earlier layer, or larger images"
    else:
        why = (
            "in each sample the attribution or the prior is constant in space, as attribution='grad' is below a "
            "global average pool and one linear layer: choose an earlier layer, another attribution or another prior"
        )
    return f"the loss at layer {name!r} is 0 for every sample and has no effect: {why}"

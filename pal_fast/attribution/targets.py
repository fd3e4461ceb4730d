"""The attributed scalar: which logits it sums, and its gradient with respect to layers' outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.compiler import is_compiling

from pal_fast import _checks, reference
from pal_fast.attribution import fabric
from pal_fast.attribution.inner_gradient import inner_gradient
from pal_fast.messages import describe

TARGETS = ("sum", "label", "predicted")
Target = str | Callable[[Tensor, Tensor | None], Tensor]


def check_target(target: object) -> None:
    if not callable(target):
        _checks.choice("target", target, TARGETS)


def takes_labels(target: Target) -> bool:
    return callable(target) or target == "label"


def check_logits(logits: object) -> None:
    """Raises unless `logits` is a floating-point tensor with a graph that does not end in a softmax or its log."""
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits must be a tensor of shape (B, classes), got {_without_logits(logits)}")
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    if logits.ndim < 1:
        raise ValueError("logits must have shape (B, classes), got a scalar")
    if not logits.requires_grad:
        raise _checks.NotReadyError(
            "logits carry no gradient: PALLoss needs the forward to run with gradients enabled and logits that "
            f"are not detached{_of_another_shape(logits)}"
        )
    if not is_compiling() and type(logits.grad_fn).__name__ in _NORMALISED:
        raise ValueError(_NORMALISED[type(logits.grad_fn).__name__])


def _without_logits(given: object) -> str:
    """What a model returned instead of a tensor, and how to get at the logits."""
    if hasattr(given, "logits"):
        return f"{describe(given)}; pass its .logits"
    if isinstance(given, Mapping):
        names = ", ".join(map(repr, given)) or "nothing in it"
        return f"{type(given).__name__} with {names}; pass the one with the logits"
    if isinstance(given, (tuple, list)):
        return f"{type(given).__name__} of {len(given)}; pass the item with the logits"
    return describe(given)


def _of_another_shape(logits: Tensor) -> str:
    """ "; got ...", for a tensor without a gradient that has the shape of another argument."""
    if logits.ndim == 3 and logits.shape[2] == 2:
        return f"; got a tensor of shape {tuple(logits.shape)}, that of landmarks: the order is (logits, landmarks)"
    if logits.ndim == 4:
        return f"; got a tensor of shape {tuple(logits.shape)}, that of images: pass what the model returns for them"
    return ""


class Normalised(NamedTuple):
    """Values that may be the output of a softmax or log-softmax."""

    #: (B, classes): the gradient of such an output, weighted by these, vanishes.
    weights: Tensor
    #: Why such an output is not a valid target.
    message: str


def normalised_by_values(logits: Tensor) -> Normalised | None:
    """Classifies by the values (one synchronisation on a GPU): rows in [0, 1] that sum to one may be a softmax, rows
    whose exponentials sum to one a log-softmax. Logits can match by chance, most easily if all samples' are nearly
    equal."""
    if logits.ndim != 2 or logits.shape[1] < 2 or logits.shape[0] == 0:
        return None
    values = logits.detach().float()
    tolerance = 1e-3 if logits.dtype in (torch.float32, torch.float64) else 2e-2
    sum_to_one = ((values.sum(1) - 1).abs() < tolerance).all() & (values >= 0).all()
    are_logs = (values.logsumexp(1).abs() < tolerance).all()
    each = (torch.ones_like(values), values.exp())
    for found, weights, message in zip(
        torch.stack([sum_to_one, are_logs]).tolist(), each, _NORMALISED.values(), strict=True
    ):
        if found:
            return Normalised(weights.to(logits.dtype), message)
    return None


def sums_alike(logits: Tensor) -> bool:
    """Reads the values: whether the logits of every sample add up to the same number (always so for one sample)."""
    if logits.ndim != 2 or logits.shape[1] < 2 or logits.shape[0] == 0:
        return False
    values = logits.detach().to(reference.widest_dtype(logits.device))
    sums = values.sum(1)
    tolerance = 1e-5 if logits.dtype in (torch.float32, torch.float64) else 2e-2
    return bool(((sums - sums[0]).abs() <= tolerance * values.abs().sum(1)).all())


#: The autograd node of a softmax or log-softmax -> why its output is not a valid target.
_NORMALISED = {
    "SoftmaxBackward0": (
        "logits look like a softmax output (rows of probabilities that sum to one): the gradient of their sum is "
        "zero; pass the logits, before the softmax"
    ),
    "LogSoftmaxBackward0": (
        "logits look like a log_softmax output (rows of log-probabilities): each of them depends on every class, so "
        "their sum is not a sum of scores; pass the logits, before the log_softmax (with CrossEntropyLoss in place of "
        "NLLLoss)"
    ),
}


def attributed_gradients(
    logits: Tensor,
    outputs: Sequence[Tensor],
    target: Target,
    labels: Tensor | None,
    *,
    create_graph: bool,
    scale: Tensor | None = None,
    start: Tensor | GradientEdge | None = None,
) -> tuple[Tensor | None, ...]:
    """`g = dS/df` for each layer's output f, S summed over the batch.

    Args:
        logits: (B, classes); for target "sum" any shape.
        target: "sum" of all logits (the paper), "label" or "predicted" (one logit per sample), or a callable
            of (logits, labels) that returns one scalar per sample.
        labels: (B,) integers, for "label"; a sample whose label is outside 0..classes-1 has no attributed logit.
        scale: 0-dim, a factor of S.
        start: where in the graph the logits are differentiated, if not at `logits` (see `distributed`).

    Returns: one gradient per output; None where the logits do not depend on that output.
    """
    if is_compiling() or not fabric.is_imported():
        return _attributed_gradients(logits, outputs, target, labels, create_graph, scale, start)
    with fabric.inner_gradients():
        return _attributed_gradients(logits, outputs, target, labels, create_graph, scale, start)


def _attributed_gradients(
    logits: Tensor,
    outputs: Sequence[Tensor],
    target: Target,
    labels: Tensor | None,
    create_graph: bool,
    scale: Tensor | None,
    start: Tensor | GradientEdge | None,
) -> tuple[Tensor | None, ...]:
    scalars: Tensor | GradientEdge
    if callable(target):
        scalars = per_sample(logits, target, labels)
        seed = torch.ones_like(scalars)
        if start is not None and start is not logits:
            (seed,) = torch.autograd.grad(scalars, logits, seed, create_graph=create_graph, retain_graph=True)
            scalars = start
    else:
        scalars = logits if start is None else start
        seed = torch.ones_like(logits) if target == "sum" else one_logit(logits, target, labels)
    if scale is not None:
        seed = seed * scale.to(seed.dtype)
    return inner_gradient(scalars, outputs, seed, create_graph=create_graph)


def per_sample(logits: Tensor, target: Callable[..., Tensor], labels: Tensor | None) -> Tensor:
    """(B,): the result of a callable target, checked."""
    scalars = target(logits, labels)
    if not isinstance(scalars, Tensor) or scalars.shape != logits.shape[:1]:
        raise ValueError(
            f"target must return one scalar per sample, shape ({logits.shape[0]},), got {describe(scalars)}"
        )
    if logits.requires_grad and not scalars.requires_grad:
        raise ValueError("target must return a function of the logits, got a tensor without a gradient (detached?)")
    return scalars


def one_logit(logits: Tensor, target: str, labels: Tensor | None) -> Tensor:
    """(B, classes): 1 at the attributed logit of each sample, 0 elsewhere."""
    check_labels(logits, target, labels)
    if target == "predicted":
        labels = logits.detach().argmax(1)
    assert labels is not None
    classes = torch.arange(logits.shape[1], device=logits.device)
    return (classes == labels[:, None]).to(logits.dtype)


def check_labels(logits: Tensor, target: str, labels: Tensor | None) -> None:
    """Raises ValueError unless "label" or "predicted" picks one logit of each sample."""
    if logits.ndim != 2:
        raise ValueError(f"target={target!r} needs logits of shape (B, classes), got {tuple(logits.shape)}")
    if target == "predicted":
        return
    if logits.shape[1] == 1:
        raise ValueError(
            "target='label' needs a logit for each class, got logits of shape "
            f"{tuple(logits.shape)}: take target='sum', which for a head with one logit is that logit"
        )
    if labels is None:
        raise ValueError("labels are needed for target='label', got None")
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.shape != logits.shape[:1]:
        raise ValueError(_wrong_labels(logits, labels))
    _checks.on_device("labels", labels, "logits", logits.device)


def counted(logits: Tensor, labels: Tensor, sample_weight: Tensor | None) -> Tensor:
    """(B,): `sample_weight`, with 0 for each sample whose label is not one of the classes. Does not synchronise."""
    inside = (labels >= 0) & (labels < logits.shape[1])
    return inside if sample_weight is None else torch.where(inside, sample_weight, 0)


def labels_to_try(logits: Tensor, target: Target, labels: Tensor | None) -> Tensor | None:
    """Labels with which `target` works on `logits`: the given ones, or class indices 0, 1, 2... if there are none.

    Raises: ValueError for labels that do not fit, and if a callable does not accept class indices; whatever a callable
        raises for the given labels.
    """
    stand_in = labels is None and logits.ndim == 2
    if stand_in:
        labels = torch.arange(logits.shape[0], device=logits.device) % max(logits.shape[1], 1)
    if target == "label":
        check_labels(logits, "label", labels)
    elif callable(target):
        try:
            per_sample(logits, target, labels)
        except Exception as error:
            if not stand_in:
                raise
            raise ValueError(
                f"labels are needed to try this target, as check(images, labels): class indices give {error}"
            ) from error
    return labels


def _wrong_labels(logits: Tensor, labels: object) -> str:
    hint = ""
    if isinstance(labels, Tensor) and labels.shape == logits.shape:
        hint = (
            ": for one-hot, mixed or several labels per sample construct the loss with "
            "target=lambda logits, labels: (logits * labels).sum(1)"
        )
    elif isinstance(labels, Tensor) and labels.shape == logits.shape[:1]:
        hint = ": pass labels.long()"
    return f"labels must be a tensor of integers of shape ({logits.shape[0]},), got {describe(labels)}{hint}"

"""`PALLoss`: the loss as a training loop uses it, on any layer of any network, one forward per step."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from pal_fast import _checks
from pal_fast.capture import Capture, find_layers
from pal_fast.constants import BACKENDS, REGIONS
from pal_fast.functional import loss_of
from pal_fast.options import AttributionOptions, HeatmapOptions, LossOptions
from pal_fast.targets import (
    Target,
    attributed_gradients,
    check_logits,
    check_target,
    refuse_probabilities,
)


class PALLoss(nn.Module):
    """Privileged Attribution Loss on one layer, or several, of a model (Bonnard et al., ICPR 2022).

    Call it once after each forward of the model in train mode; add the result to the task's loss. It holds no
    parameter, and the model's state_dict, copies and pickles are the same with and without it.

    Args:
        model: the network; its forward is the only one that runs.
        layer: a module of it, its dotted name, or a list of these (the losses are averaged). Its output must
            be (B, C, H, W).
        attribution: "grad_input" (the paper's Grad*Input), "grad" or "activation".
        absolute: abs(g) (the paper) or g.
        channels: "mean", "half", "all" or "each"; see `pal_loss`.
        channel_count: how many channels take part, an int or a fraction in (0, 1].
        score: "pearson" (bounded by 1) or "cross_correlation" (the paper's formula).
        scale: of "cross_correlation": "sum" (the paper), "mean" or "unit".
        target: what is attributed: the "sum" of the logits (the paper), the "label"'s or the "predicted"
            logit, or a callable of (logits, labels) that returns one scalar per sample.
        image_size: (IH, IW) that landmarks refer to; None reads it from the model's input.
        sigma: of the landmarks' Gaussians in pixels of that image; None is 1/16 of its longer side.
        combine, normalize: of the Gaussians; see `landmark_heatmap`.
        regions: which regions of the 68-point scheme take part: a name, several names, or a mapping of names
            to weights, out of "jaw", "brows", "nose", "eyes", "mouth". None takes all landmarks of any scheme.
        weight: factor of the loss.
        reduction: over the batch: "mean", "sum" or "none".
        second_order: "exact" differentiates the gradient itself.
        backend: None for the fastest, or "cuda", "cpu", "triton", "reference".

    Raises: ValueError, TypeError naming the argument; RuntimeError if `backend` cannot run anywhere.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: nn.Module | str | Sequence[nn.Module | str],
        *,
        attribution: str = "grad_input",
        absolute: bool = True,
        channels: str = "mean",
        channel_count: int | float | None = None,
        score: str = "pearson",
        scale: str = "sum",
        target: Target = "sum",
        image_size: int | tuple[int, int] | None = None,
        sigma: float | None = None,
        combine: str = "sum",
        normalize: str = "none",
        regions: str | Sequence[str] | Mapping[str, float] | None = None,
        weight: float = 1.0,
        reduction: str = "mean",
        second_order: str = "exact",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {_checks.describe(model)}")
        if isinstance(model, nn.DataParallel):
            raise TypeError(
                "model must not be DataParallel, whose replicas do not share one graph; use DistributedDataParallel"
            )
        self._options = LossOptions(
            AttributionOptions(attribution, absolute, channels, channel_count),
            HeatmapOptions(sigma, combine, normalize),
            score,
            scale,
            reduction,
        )
        check_target(target)
        _checks.finite_number("weight", weight)
        _checks.choice("second_order", second_order, ("exact",))
        if backend is not None:
            _checks.choice("backend", backend, BACKENDS)
        self._target = target
        self._image_size = None if image_size is None else _checks.size_pair("image_size", image_size)
        self._region_weights = region_weights(regions)
        self.weight = weight
        self._backend = backend
        self._looked_at_logits = False
        # In a tuple, so that the model is not registered as a submodule of the loss.
        self._model = (model,)
        self._capture = Capture(model, find_layers(model, layer))
        self._capture.attach()

    @property
    def model(self) -> nn.Module:
        return self._model[0]

    @property
    def layers(self) -> tuple[str, ...]:
        """The dotted names of the layers that are attributed."""
        return tuple(self._capture.layers)

    def forward(
        self,
        logits: Tensor,
        landmarks: Tensor | None = None,
        *,
        heatmap: Tensor | None = None,
        labels: Tensor | None = None,
        visible: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of the model's latest forward, times `weight`.

        Args:
            logits: (B, classes), what that forward returned, before any softmax.
            landmarks: (B, K, 2), (x, y) in pixels of the model's input image, integer = pixel centre.
            heatmap: (B, h, w), any prior instead of landmarks; resized to the layer.
            labels: (B,) integers, for target="label" and callables.
            visible: (B, K) bool, False drops a landmark.
            sample_weight: (B,), 0 leaves a sample out.

        Returns: 0-dim, or (B,) for reduction="none"; float32 (float64 for a float64 model).

        Raises: ValueError, TypeError naming the argument; RuntimeError if the layer has not run or gradients
            are off.
        """
        if not torch.is_grad_enabled():
            self._capture.clear()
            raise RuntimeError("PALLoss needs gradients, but grad mode is off (torch.no_grad or inference_mode)")
        outputs = self._capture.take()
        check_logits(logits)
        if not self._looked_at_logits:
            refuse_probabilities(logits)
            self._looked_at_logits = True
        image_size, weights = self._image_size, None
        if landmarks is not None:
            _checks.landmarks(landmarks, logits.shape[0])
            image_size = image_size or self._capture.image_size
            if image_size is None:
                raise ValueError(
                    "image_size=(height, width) is needed: the model's input is not an image of shape (B, C, H, W)"
                )
            weights = self._landmark_weights(landmarks)
        for name, output in zip(self.layers, outputs, strict=True):
            _checks.layer_tensor(f"the output of layer {name!r}", output)
            if output.shape[0] != logits.shape[0]:
                raise ValueError(f"logits hold {logits.shape[0]} samples, but layer {name!r} ran on {output.shape[0]}")
        if self._options.attribution.needs_gradient:
            gradients = attributed_gradients(logits, outputs, self._target, labels, create_graph=True)
        else:
            gradients = (None,) * len(outputs)
        total: Tensor | None = None
        for name, output, gradient in zip(self.layers, outputs, gradients, strict=True):
            if gradient is None and self._options.attribution.needs_gradient:
                raise RuntimeError(
                    f"the logits do not depend on the output of layer {name!r} in the latest forward: pass the "
                    "logits of that very forward, and a layer that leads to them"
                )
            loss = loss_of(
                output,
                gradient,
                heatmap,
                landmarks,
                visible,
                weights,
                sample_weight,
                image_size,
                self._options,
                self._backend,
            )
            total = loss if total is None else total + loss
        assert total is not None
        factor = self.weight / len(outputs)
        return total if factor == 1 else total * factor

    def remove(self) -> None:
        """Takes the hooks off the model. The loss cannot be called afterwards."""
        self._capture.remove()

    def __enter__(self) -> PALLoss:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def extra_repr(self) -> str:
        a = self._options.attribution
        return (
            f"layers={list(self.layers)}, attribution={a.attribution!r}, absolute={a.absolute}, "
            f"channels={a.channels!r}, score={self._options.score!r}, weight={self.weight}"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> PALLoss:
        """A loss on the copy of the model (the one in `memo`, if the model is copied along)."""
        twin = copy.copy(self)
        memo[id(self)] = twin
        model = copy.deepcopy(self.model, memo)
        twin._model = (model,)
        twin._capture = Capture(model, find_layers(model, list(self.layers)))
        twin._capture.attach()
        return twin

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_capture"] = (list(self.layers), bool(self._capture.handles))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        layers, attached = state.pop("_capture")
        super().__setstate__(state)
        self._capture = Capture(self.model, find_layers(self.model, layers))
        if attached:
            self._capture.attach()

    def _landmark_weights(self, landmarks: Tensor) -> Tensor | None:
        if self._region_weights is None:
            return None
        if landmarks.shape[1] != len(self._region_weights):
            raise ValueError(
                f"regions belong to the {len(self._region_weights)}-point scheme, but landmarks hold "
                f"{landmarks.shape[1]} points"
            )
        self._region_weights = self._region_weights.to(landmarks.device)
        return self._region_weights


def region_weights(regions: str | Sequence[str] | Mapping[str, float] | None) -> Tensor | None:
    """(68,) float32: the weight of each landmark of the 68-point scheme; None for no choice of regions."""
    if regions is None:
        return None
    if isinstance(regions, str):
        regions = [regions]
    if not isinstance(regions, (Mapping, Sequence)):
        raise TypeError(f"regions must be names or a mapping of names to weights, got {_checks.describe(regions)}")
    chosen = dict(regions) if isinstance(regions, Mapping) else dict.fromkeys(regions, 1.0)
    if not chosen:
        raise ValueError(f"regions must name at least one of {', '.join(REGIONS)}, got none")
    weights = torch.zeros(68)
    for name, weight in chosen.items():
        _checks.choice("regions", name, tuple(REGIONS))
        _checks.finite_number(f"the weight of region {name!r}", weight)
        weights[list(REGIONS[name])] = float(weight)
    return weights

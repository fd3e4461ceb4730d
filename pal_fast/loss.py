"""`PALLoss`: the loss for use in a training loop, on any layer of any network, with one forward per step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.utils.checkpoint import CheckpointError

from pal_fast import _checks, preflight
from pal_fast.attribution import distributed, fabric, latest_run
from pal_fast.attribution.targets import Target, check_logits
from pal_fast.calls import Prior
from pal_fast.capture.captured import Captured
from pal_fast.capture.layer_names import find_layers, within_compiled
from pal_fast.capture.model_run import Output
from pal_fast.constants import BACKENDS
from pal_fast.engine import Engine
from pal_fast.loss_copies import CopiedWithModel
from pal_fast.options import AttributionOptions, HeatmapOptions, LossOptions
from pal_fast.regions import Regions


class PALLoss(CopiedWithModel):
    """Privileged Attribution Loss on one layer, or several, of a model (Bonnard et al., ICPR 2022).

    Call it once after each forward of the model in train mode, and add the result to the task's loss. It has no
    parameters, and the model's state_dict, copies and pickles are the same with and without it. Its hooks are removed
    from the model when it is deleted.

    Args:
        model: the network; no second forward is run. The result of `torch.compile(model)` is accepted only for
            attribution="activation".
        layer: a module of it, its dotted name, or a list of these (the losses are averaged).
        attribution: "grad_input" (the paper's Grad*Input), "grad" or "activation".
        absolute: abs(g) (the paper) or g.
        channels: "mean", "half", "all" or "each"; see `pal_loss`.
        channel_count: how many channels take part, an int or a fraction in (0, 1].
        score: "pearson" (bounded by 1) or "cross_correlation" (the paper's formula).
        scale: for "cross_correlation": "sum" (the paper), "mean" or "unit".
        target: what is attributed: the "sum" of the logits (the paper), the logit of the "label" or the "predicted"
            one, or a callable of (logits, labels) that returns one scalar per sample.
        image_size: (IH, IW) that landmarks refer to; None reads it from the model's input.
        sigma: of the landmarks' Gaussians, in pixels of that image; None is 1/16 of its longer side.
        combine, normalize: of the Gaussians; see `landmark_heatmap`.
        regions: the regions of the 68-point scheme that take part: a name, several names, or a mapping of names
            to weights; "jaw", "brows", "nose", "eyes", "mouth". None uses all landmarks of any scheme.
        weight: factor of the loss.
        reduction: over the batch: "mean", "sum" or "none".
        second_order: "exact" differentiates the gradient itself; "finite_difference" replaces that by two more
            passes of the head, for heads with operators that have no second derivative.
        head: for "finite_difference": a callable from the layer's output to the logits.
        layout: "auto" (by shape and modules), or how the layer's output is laid out: "NCHW", "NHWC" (Swin) or "tokens"
            (ViT: (B, N, C), class and register tokens first).
        backend: None for the fastest, or "cuda", "cpu", "triton", "reference".

    Raises: ValueError, TypeError naming the argument.
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
        head: Callable[[Tensor], Tensor] | None = None,
        layout: str = "auto",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        _checks.module("model", model)
        distributed.refuse_unsound(model)
        options = LossOptions(
            AttributionOptions(attribution, absolute, channels, channel_count),
            HeatmapOptions(sigma, combine, normalize),
            score,
            scale,
            reduction,
        )
        _checks.finite_number("weight", weight)
        if backend is not None:
            _checks.choice("backend", backend, BACKENDS)
        self._engine = Engine(options, target, second_order, head, layout, backend)
        self._image_size = None if image_size is None else _checks.size_pair("image_size", image_size)
        self._regions = Regions(regions)
        self.weight = float(weight)
        model = within_compiled(model, differentiates=self._engine.differentiates)
        self._model = (model,)
        layers = find_layers(model, layer)
        if second_order == "finite_difference" and len(layers) != 1:
            raise ValueError(
                f"second_order='finite_difference' takes one layer, got {len(layers)}; make a PALLoss for each"
            )
        self._attach(layers)

    @property
    def model(self) -> nn.Module:
        return self._model[0]

    @property
    def layers(self) -> tuple[str, ...]:
        """The dotted names of the layers that are attributed."""
        return tuple(self._capture.layers) if self._waiting is None else self._waiting.layers

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
        """The loss of the model's latest forward, multiplied by `weight`.

        Args:
            logits: (B, classes), returned by that forward, before any softmax.
            landmarks: (B, K, 2), (x, y) in pixels of the model's input image, integer = pixel centre.
            heatmap: (B, h, w), any prior instead of landmarks; resized to the layer.
            labels: (B,) integers, for target="label" and callables. With "label", a sample whose label is not one of
                the classes has weight 0, and none of its logits is attributed.
            visible: (B, K) bool, False drops a landmark.
            sample_weight: (B,), finite, without a gradient: the weights of the samples' scores. 0 leaves a sample's
                score out, but its logits are still attributed, which affects other samples through a BatchNorm above
                the layer.

        Returns: 0-dim, or (B,) for reduction="none"; float32 (float64 for a float64 model).

        Raises: ValueError, TypeError naming the argument; RuntimeError if `backend` cannot run; NotReadyError, which is
            a ValueError and a RuntimeError, if the layer has not run or gradients are off.
        """
        if self._settle():
            raise _checks.NotReadyError(
                "this PALLoss was loaded together with the model that contains it, and its hooks were registered only "
                "now: repeat the step, or call model.train() before the first one"
            )
        if not torch.is_grad_enabled():
            self._capture.clear()
            raise _checks.NotReadyError(
                "PALLoss needs gradients, but grad mode is off (torch.no_grad or inference_mode)"
            )
        taken = self._take(logits)
        check_logits(logits)
        image_size, weights = self._image_size, None
        if landmarks is not None:
            image_size = image_size or self._capture.image_size
            if image_size is None:
                raise ValueError(self._capture.image.why_none)
            weights = self._regions.weights_for(landmarks)
        for record in taken:
            if record.output is not None and record.output.shape[0] != logits.shape[0]:
                raise ValueError(_other_batch(logits.shape[0], record.output.shape[0], record.name))
        prior = Prior(heatmap, landmarks, visible, weights, sample_weight, image_size)
        try:
            loss = self._engine.loss(self.model, logits, taken, labels, prior, self._input_size)
        except CheckpointError as error:
            self._capture.probe_checkpoints()
            raise _checks.NotReadyError(
                "the recomputation of an activation checkpoint above the layer differed from its forward; if "
                "checkpointing was enabled after a first forward, repeat this step: later forwards take it into account"
            ) from error
        finally:
            self._capture.image.forget()
        return loss if self.weight == 1 else loss * self.weight

    @property
    def _input_size(self) -> tuple[int, int] | None:
        """(IH, IW) of the model's input, or else as given by the user."""
        return self._capture.image_size or self._image_size

    def _take(self, logits: Tensor) -> list[Captured]:
        if is_compiling():
            return self._capture.take()
        return latest_run.take(self.model, logits, self._capture)

    def check(self, images: Any, labels: Tensor | None = None, *, output: Output | None = None) -> preflight.Report:
        """Tries the loss on one small batch and reports for each layer whether it works.

        The model does not change: gradients, buffers, random state and mode are restored. May be called under
        `torch.no_grad` and `torch.inference_mode`. Of DistributedDataParallel only the wrapped network runs, so that
        nothing is reduced; if the network has SyncBatchNorm, every process must call this.

        Args:
            images: (B, 3, IH, IW), a tuple of the model's positional inputs, or a dict of its keyword arguments.
            labels: for target="label" and callables, as in `forward`; None uses class indices 0, 1, 2...
            output: extracts the logits from what the model returns; None takes the returned tensor, its `logits`, or
                the only tensor in it.

        Returns: a report, readable with `print`; `report.problems` lists what is wrong.

        Raises: ValueError for labels that do not fit the target; TypeError for a model under fully_shard: call this
            before sharding.
        """
        self._settle()
        distributed.refuse_sharded(self.model)
        with (
            self._capture.kept(),
            self._capture.forced(),
            distributed.reducers_aside(self.model),
            fabric.inner_gradients(),
        ):
            try:
                target, attribution = self._engine.target, self._engine.options.attribution
                return preflight.check(
                    self.model, images, labels, output, self._capture, target, attribution, self._trial
                )
            finally:
                self._capture.probe_checkpoints()

    def _trial(self, logits: Tensor, record: Captured, labels: Tensor | None, heatmap: Tensor) -> preflight.Trial:
        return self._engine.trial(self.model, logits, record, labels, heatmap, self._input_size)

    def remove(self) -> None:
        """Removes the hooks from the model. The loss cannot be called afterwards."""
        self._settle()
        self._capture.remove()

    def __del__(self) -> None:
        # The hooks reference the capture, not the loss, so the loss can be deleted while the model lives. The capture
        # is absent if __init__ raised.
        capture = self.__dict__.get("_capture")
        if capture is not None:
            capture.remove()

    def __enter__(self) -> PALLoss:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def extra_repr(self) -> str:
        options = self._engine.options
        a = options.attribution
        return (
            f"layers={list(self.layers)}, attribution={a.attribution!r}, absolute={a.absolute}, "
            f"channels={a.channels!r}, score={options.score!r}, weight={self.weight}"
        )


def _other_batch(samples: int, ran_on: int, layer: str) -> str:
    way_out = ""
    if samples and ran_on % samples == 0:
        way_out = (
            f": where each sample is {ran_on // samples} frames or crops, pass logits.repeat_interleave("
            f"{ran_on // samples}, 0), in the order of the layer's batch, and the prior of each of them"
        )
    return f"logits hold {samples} samples, but layer {layer!r} ran on {ran_on}{way_out}"

"""`PALLoss`: the loss as a training loop uses it, on any layer of any network, one forward per step."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pal_fast import _checks, distributed, first_order, preflight
from pal_fast.capture import Capture, Captured, find_layers
from pal_fast.constants import BACKENDS
from pal_fast.functional import loss_of
from pal_fast.layouts import LAYOUTS, NCHW, Layout, find_layout
from pal_fast.options import AttributionOptions, HeatmapOptions, LossOptions
from pal_fast.precision import ScalarScale, without_autocast
from pal_fast.regions import Regions
from pal_fast.targets import Target, attributed_gradients, check_logits, check_target

SECOND_ORDER = ("exact", "finite_difference")


class Prior(NamedTuple):
    """What the attribution is compared with, in the order in which `functional.loss_of` takes it."""

    heatmap: Tensor | None
    landmarks: Tensor | None
    visible: Tensor | None
    weights: Tensor | None
    sample_weight: Tensor | None
    image_size: tuple[int, int] | None


class PALLoss(nn.Module):
    """Privileged Attribution Loss on one layer, or several, of a model (Bonnard et al., ICPR 2022).

    Call it once after each forward of the model in train mode; add the result to the task's loss. It holds no
    parameter, and the model's state_dict, copies and pickles are the same with and without it.

    Args:
        model: the network; its forward is the only one that runs.
        layer: a module of it, its dotted name, or a list of these (the losses are averaged).
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
        second_order: "exact" differentiates the gradient itself; "finite_difference" replaces that by two more
            passes of the head, for smooth heads without a second derivative (see `first_order`).
        head: for "finite_difference": a callable from the layer's output to the logits.
        layout: "auto", or how the layer's output is laid out: "NCHW", "NHWC" (Swin) or "tokens" (ViT: (B, N, C),
            class and register tokens first).
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
        head: Callable[[Tensor], Tensor] | None = None,
        layout: str = "auto",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {_checks.describe(model)}")
        distributed.refuse_unsound(model)
        self._options = LossOptions(
            AttributionOptions(attribution, absolute, channels, channel_count),
            HeatmapOptions(sigma, combine, normalize),
            score,
            scale,
            reduction,
        )
        check_target(target)
        _checks.finite_number("weight", weight)
        _checks.choice("second_order", second_order, SECOND_ORDER)
        _checks.choice("layout", layout, LAYOUTS)
        if backend is not None:
            _checks.choice("backend", backend, BACKENDS)
        self._target = target
        self._image_size = None if image_size is None else _checks.size_pair("image_size", image_size)
        self._regions = Regions(regions)
        self.weight = weight
        self._backend = backend
        self._wanted_layout = layout
        self._layouts: dict[Any, Layout] = {}
        self._scale = ScalarScale()
        #: Whether the first call, with its checks, is over.
        self._begun = False
        self._engine = second_order if self._options.attribution.needs_gradient else "none"
        # In tuples, so that neither is registered as a submodule of the loss.
        self._model = (model,)
        self._heads = (head,)
        layers = find_layers(model, layer)
        if second_order == "finite_difference":
            first_order.check_options(head, len(layers), reduction)
        elif head is not None:
            raise ValueError("head belongs to second_order='finite_difference'; leave it out")
        self._attach(layers)

    def _attach(self, layers: dict[str, nn.Module]) -> None:
        self._capture = Capture(
            self.model,
            layers,
            math_attention=self._engine == "exact",
            keep_conditions=self._engine == "finite_difference",
        )
        self._capture.attach()

    @property
    def _head(self) -> Callable[[Tensor], Tensor] | None:
        return self._heads[0]

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
        compiling = torch.compiler.is_compiling()
        taken = self._capture.take() if compiling else self._take(logits)
        check_logits(logits)
        outputs = [record.output for record in taken if record.output is not None]
        layouts = [self._layout(record.name, output) for record, output in zip(taken, outputs, strict=True)]
        image_size, weights = self._image_size, None
        if landmarks is not None:
            _checks.landmarks(landmarks, logits.shape[0])
            image_size = image_size or self._capture.image_size
            if image_size is None:
                raise ValueError(
                    "image_size=(height, width) is needed: the model's input is not an image of shape (B, C, H, W)"
                )
            weights = self._regions.weights_for(landmarks)
        for record, output in zip(taken, outputs, strict=True):
            if output.shape[0] != logits.shape[0]:
                raise ValueError(
                    f"logits hold {logits.shape[0]} samples, but layer {record.name!r} ran on {output.shape[0]}"
                )
        prior = Prior(heatmap, landmarks, visible, weights, sample_weight, image_size)
        if not compiling and not self._begun:
            preflight.first_call(self.model, logits, taken, exact=self._engine == "exact")
        with without_autocast(logits.device.type):
            loss = self._loss(logits, taken, outputs, layouts, labels, prior)
            if not compiling and distributed.in_play():
                loss = distributed.reaching_all_parameters(loss, logits)
        self._begun = True
        return loss

    def _loss(
        self,
        logits: Tensor,
        taken: Sequence[Captured],
        outputs: Sequence[Tensor],
        layouts: Sequence[Layout],
        labels: Tensor | None,
        prior: Prior,
    ) -> Tensor:
        """The layers' average, times `weight`."""
        exact = self._engine == "exact"
        gradients: Sequence[Tensor | None] = [None] * len(outputs)
        if self._engine != "none":
            gradients = self._gradients(logits, taken, outputs, labels, create_graph=exact)
        total: Tensor | None = None
        for record, output, gradient, layout in zip(taken, outputs, gradients, layouts, strict=True):
            g = None if gradient is None else layout.view(gradient)
            if not self._begun and g is not None and not torch.compiler.is_compiling():
                preflight.warn_if_useless(record.name, g)
            loss = loss_of(layout.view(output), g, *prior, self._options, self._backend)
            total = loss if total is None else total + loss
        assert total is not None
        if self._engine == "finite_difference":
            total = total + self._difference(total, logits, taken[0], outputs[0], gradients[0], labels)
        factor = self.weight / len(outputs)
        return total if factor == 1 else total * factor

    def _gradients(
        self,
        logits: Tensor,
        taken: Sequence[Captured],
        outputs: Sequence[Tensor],
        labels: Tensor | None,
        *,
        create_graph: bool,
    ) -> list[Tensor]:
        scaled = any(output.dtype == torch.float16 for output in outputs)
        start: Any = None
        with contextlib.ExitStack() as stack:
            if not torch.compiler.is_compiling() and distributed.in_play():
                stack.enter_context(distributed.parameters_kept(self.model))
                start = distributed.before_sink(logits)
            for _ in range(1 if not scaled or self._scale.ready else 3):
                scale = self._scale.value if scaled else None
                found = attributed_gradients(
                    logits, outputs, self._target, labels, create_graph=create_graph, scale=scale, start=start
                )
                if scaled:
                    self._scale.follow([g for g in found if g is not None])
        gradients = []
        for record, gradient in zip(taken, found, strict=True):
            if gradient is None:
                raise RuntimeError(
                    f"the logits do not depend on the output of layer {record.name!r} in the latest forward: pass "
                    "the logits of that very forward, and a layer that leads to them"
                )
            gradients.append(gradient if create_graph else gradient.detach().requires_grad_())
        return gradients

    def _difference(
        self,
        loss: Tensor,
        logits: Tensor,
        record: Captured,
        output: Tensor,
        gradient: Tensor | None,
        labels: Tensor | None,
    ) -> Tensor:
        """The loss's gradient through g by the first-order engine, on a value of 0."""
        assert gradient is not None
        assert record.conditions is not None
        assert self._head is not None
        nodes = first_order.head_nodes(logits, output)
        if not self._begun:
            first_order.refuse_kinks(nodes)
            first_order.refuse_other_head(self._head, self.model, output, logits, record.conditions)
        (v,) = torch.autograd.grad(loss, gradient, retain_graph=True)
        return first_order.through_gradient(
            self._head,
            self.model,
            output,
            v,
            logits,
            self._target,
            labels,
            coupled=first_order.is_coupled(nodes),
            conditions=record.conditions,
            scale=self._scale.used if output.dtype == torch.float16 else None,
        )

    def _take(self, logits: Tensor) -> list[Captured]:
        try:
            return self._capture.take()
        except RuntimeError:
            reason = preflight.why_hooks_are_silent(self.model, logits)
            if reason:
                raise RuntimeError(reason) from None
            raise

    def _layout(self, name: str, output: Tensor) -> Layout:
        """The layout of one layer's output; found anew only when its shape or the image's changes."""
        if self._wanted_layout == "auto" and output.ndim == 4 and output.shape[2] == output.shape[3] != output.shape[1]:
            return NCHW
        key = (name, output.shape[1:], self._capture.image_size)
        layout = self._layouts.get(key)
        if layout is None:
            image_size = self._capture.image_size or self._image_size
            layout = find_layout(self._wanted_layout, name, tuple(output.shape), image_size)
            _checks.layer_tensor(f"the output of layer {name!r}", layout.view(output))
            self._layouts[key] = layout
        return layout

    def check(self, images: Any) -> preflight.Report:
        """Tries the loss on one small batch and reports, per layer, whether it can do its work.

        Nothing of the model changes: gradients, running statistics, random state and mode are put back.

        Args:
            images: (B, 3, IH, IW), or a tuple of the model's positional inputs.

        Returns: a report, readable with `print`; `report.problems` lists what is wrong.
        """
        return preflight.check(self.model, images, self._capture, self._trial)

    def _trial(self, logits: Tensor, record: Captured, heatmap: Tensor) -> preflight.Trial:
        """One layer on its own, for `check`."""
        assert record.output is not None
        layout = self._layout(record.name, record.output)
        preflight.first_call(self.model, logits, [record], exact=self._engine == "exact")
        prior = Prior(heatmap, None, None, None, None, None)
        gradient = None
        if self._engine != "none":
            (gradient,) = self._gradients(logits, [record], [record.output], None, create_graph=False)
            gradient = layout.view(gradient.detach())
        with without_autocast(logits.device.type):
            loss = self._loss(logits, [record], [record.output], [layout], None, prior)
        return preflight.Trial(str(layout), layout.view(record.output), gradient, loss)

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
        twin._heads = copy.deepcopy(self._heads, memo)
        twin._scale, twin._layouts = ScalarScale(), {}
        twin._attach(find_layers(model, list(self.layers)))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_capture"] = (list(self.layers), bool(self._capture.handles))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        layers, attached = state.pop("_capture")
        super().__setstate__(state)
        self._attach(find_layers(self.model, layers))
        if not attached:
            self.remove()

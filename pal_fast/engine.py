"""From what was captured in a forward to the loss: layouts, the inner gradient, and how it is differentiated."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from pal_fast import _checks, batch_checks, preflight
from pal_fast.attribution import distributed, finite_difference, graph_checks
from pal_fast.attribution.scalar_scale import ScalarScale, in_float16
from pal_fast.attribution.targets import (
    Target,
    attributed_gradients,
    check_labels,
    check_target,
    counted,
    takes_labels,
)
from pal_fast.autocast import outside_autocast
from pal_fast.calls import Call, Prior, check_call, checked_loss_of
from pal_fast.capture.captured import Captured
from pal_fast.capture.layouts import LAYOUTS, Layout, layout_of
from pal_fast.options import LossOptions

SECOND_ORDER = ("exact", "finite_difference")

Head = Callable[[Tensor], Tensor]


class Engine:
    """Computes one PALLoss from captured outputs and logits; keeps the state that carries over between steps."""

    def __init__(
        self,
        options: LossOptions,
        target: Target,
        second_order: str,
        head: Head | None,
        layout: str,
        backend: str | None,
    ) -> None:
        check_target(target)
        _checks.choice("second_order", second_order, SECOND_ORDER)
        _checks.choice("layout", layout, LAYOUTS)
        if second_order == "finite_difference":
            finite_difference.check_options(head, options.reduction)
        elif head is not None:
            raise ValueError("head belongs to second_order='finite_difference'; leave it out")
        self.options = options
        self.target = target
        self.head = head
        self.backend = backend
        needed = options.attribution.needs_gradient
        #: Whether the logits are differentiated with respect to the layers. That gradient is then differentiated
        #: again (`exact`), or its derivative replaced by finite differences (`by_differences`).
        self.differentiates = needed
        self.exact = needed and second_order == "exact"
        self.by_differences = needed and second_order == "finite_difference"
        self._layout = layout
        self._layouts: dict[Any, Layout] = {}
        self._scale = ScalarScale()
        #: Whether the first call, with its checks, has completed.
        self._begun = False
        #: Whether the checks of values have run. They run once, on the first batch in which a sample counts.
        self._looked = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        """A head that is a method of the model becomes the same method of the model's copy, if that is in `memo`."""
        return self._fresh(copy.deepcopy(self.head, memo))

    def __reduce__(self) -> Any:
        return Engine._made, (self.options, self.target, self.head, self._layout, self.backend)

    def _fresh(self, head: Head | None) -> Engine:
        return Engine._made(self.options, self.target, head, self._layout, self.backend)

    @classmethod
    def _made(cls, options: LossOptions, target: Target, head: Head | None, layout: str, backend: str | None) -> Engine:
        second_order = "exact" if head is None else "finite_difference"
        return cls(options, target, second_order, head, layout, backend)

    def loss(
        self,
        model: nn.Module,
        logits: Tensor,
        taken: Sequence[Captured],
        labels: Tensor | None,
        prior: Prior,
        image_size: tuple[int, int] | None,
    ) -> Tensor:
        """The loss, averaged over the layers.

        Args:
            taken: what was captured at each layer, including the output.
            image_size: of the model's input or given by the user, for the layouts.
        """
        compiling, seen = is_compiling(), _checks.has_values(logits)
        first = seen and not self._begun
        if first:
            graph_checks.check(model, logits, taken, self.target, differentiates=self.differentiates, exact=self.exact)
            if labels is not None and not takes_labels(self.target):
                batch_checks.warn_of_unused_labels(self.target)
        in_group = not compiling and distributed.in_process_group()
        layers = []
        for record in taken:
            output = _output(record)
            layout = self.layout_of(record, image_size)
            f = layout.view(output)
            layers.append((layout, f, check_call(f, prior, self.options, self.backend)))
        by_label = self.target == "label" and self.differentiates
        if by_label:
            check_labels(logits, "label", labels)
            assert labels is not None
            prior = prior._replace(sample_weight=counted(logits, labels, prior.sample_weight))
        look = seen and not self._looked and batch_checks.can_tell(prior)
        told = look and batch_checks.warn_of_prior(prior, self.options.heatmap, logits, labels if by_label else None)
        given = model, logits, taken, labels, prior, layers, first, look and not told, in_group
        with outside_autocast(logits):
            total = self._total(*given)
        if first:
            self._begun = True
        if look:
            self._looked = True
        return total

    def _total(
        self,
        model: nn.Module,
        logits: Tensor,
        taken: Sequence[Captured],
        labels: Tensor | None,
        prior: Prior,
        layers: Sequence[tuple[Layout, Tensor, Call]],
        first: bool,
        look: bool,
        in_group: bool,
    ) -> Tensor:
        """The loss, averaged over the layers, without autocast.

        Args:
            layers: the layout, f and the checked call of each layer.
            first: whether this is the first call.
            look: whether to warn if the loss has no effect.
        """
        gradients: Sequence[Tensor | None] = [None] * len(taken)
        if self.differentiates:
            gradients = self.gradients(model, logits, taken, labels, create_graph=self.exact, in_group=in_group)
        total: Tensor | None = None
        for record, gradient, (layout, f, call) in zip(taken, gradients, layers, strict=True):
            g = None if gradient is None else layout.view(gradient)
            part = checked_loss_of(f, g, prior, self.options, self.backend, call)
            if look:
                batch_checks.warn_if_useless(model, record.name, f, g, part, prior, self.options.reduction)
            total = part if total is None else total + part
        assert total is not None
        if self.by_differences:
            total = total + self._difference(model, total, logits, taken[0], gradients[0], labels, first)
        if len(taken) > 1:
            total = total / len(taken)
        if in_group:
            total = distributed.reaching_all_parameters(total, logits)
        return total

    def gradients(
        self,
        model: nn.Module,
        logits: Tensor,
        taken: Sequence[Captured],
        labels: Tensor | None,
        *,
        create_graph: bool,
        in_group: bool,
    ) -> list[Tensor]:
        """g for each layer, in the layer's own layout; without `create_graph`, a leaf that requires gradients.

        Args:
            in_group: whether this process belongs to a process group.

        Raises: NotReadyError if the logits do not depend on a layer's output.
        """
        if in_group:
            with distributed.parameters_kept(model):
                start = distributed.before_sink(logits)
                found = self._scaled_gradients(logits, taken, labels, create_graph, start)
        else:
            found = self._scaled_gradients(logits, taken, labels, create_graph, None)
        gradients = []
        for record, gradient in zip(taken, found, strict=True):
            if gradient is None:
                raise _checks.NotReadyError(graph_checks.without_path(logits, record.name, _output(record)))
            gradients.append(gradient if create_graph else gradient.detach().requires_grad_())
        return gradients

    def _scaled_gradients(
        self, logits: Tensor, taken: Sequence[Captured], labels: Tensor | None, create_graph: bool, start: Any
    ) -> Sequence[Tensor | None]:
        """As `attributed_gradients`; in float16, S is scaled so that they neither overflow nor underflow."""
        outputs = [_output(record) for record in taken]
        if not in_float16(logits, taken):
            return attributed_gradients(logits, outputs, self.target, labels, create_graph=create_graph, start=start)
        found: Sequence[Tensor | None] = []
        attributed = None
        if self.target == "label":
            check_labels(logits, "label", labels)
            assert labels is not None
            attributed = counted(logits, labels, None).any()
        # The first call finds the scale in three attempts; later calls update it from the previous step.
        for _ in range(1 if self._scale.ready else 3):
            scale = self._scale.value
            found = attributed_gradients(
                logits, outputs, self.target, labels, create_graph=create_graph, scale=scale, start=start
            )
            self._scale.follow([g for g in found if g is not None], attributed)
        return found

    def layout_of(self, record: Captured, image_size: tuple[int, int] | None) -> Layout:
        """The layout of one layer's output; cached until its shape or the image's size changes.

        Raises: ValueError, TypeError if the output is not a map.
        """
        output = _output(record)
        key = (record.name, output.shape[1:], image_size)
        layout = self._layouts.get(key)
        if layout is None:
            layout = layout_of(self._layout, record.name, output, image_size, record.signs)
            _checks.layer_tensor(f"the output of layer {record.name!r}", layout.view(output))
            self._layouts[key] = layout
        return layout

    def trial(
        self,
        model: nn.Module,
        logits: Tensor,
        record: Captured,
        labels: Tensor | None,
        heatmap: Tensor,
        image_size: tuple[int, int] | None,
    ) -> preflight.Trial:
        """Tries one layer on its own, for `preflight.check`."""
        output = _output(record)
        layout = self.layout_of(record, image_size)
        fresh = self._fresh(self.head)
        loss = fresh.loss(model, logits, [record], labels, Prior(heatmap), image_size)
        gradient = None
        if self.differentiates:
            (gradient,) = fresh.gradients(
                model, logits, [record], labels, create_graph=False, in_group=distributed.in_process_group()
            )
            gradient = layout.view(gradient.detach())
        return preflight.Trial(str(layout), layout.view(output), gradient, loss, self.exact)

    def _difference(
        self,
        model: nn.Module,
        loss: Tensor,
        logits: Tensor,
        record: Captured,
        gradient: Tensor | None,
        labels: Tensor | None,
        first: bool,
    ) -> Tensor:
        """A term of value 0 with the loss's gradient through g, by finite differences."""
        output, conditions, head = _output(record), record.conditions, self.head
        assert gradient is not None
        assert conditions is not None
        assert head is not None
        if first:
            if record.changed_in_place:
                raise RuntimeError(
                    f"second_order='finite_difference' cannot repeat the head: {graph_checks.in_place(record.name)}"
                )
            finite_difference.refuse_other_head(head, model, output, logits, conditions)
        (v,) = torch.autograd.grad(loss, gradient, retain_graph=True)
        return finite_difference.through_gradient(
            head,
            model,
            output,
            v,
            logits,
            self.target,
            labels,
            nodes=finite_difference.head_nodes(logits, output),
            conditions=conditions,
            first=first,
            scale=self._scale.used if in_float16(logits, [record]) else None,
        )


def _output(record: Captured) -> Tensor:
    assert record.output is not None
    return record.output

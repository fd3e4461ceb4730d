"""`pal.check`: finds silent failures before they cost a training run."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from pal_fast import reference
from pal_fast.attribution import graph
from pal_fast.attribution.graph_checks import NORM_OF_ZERO, doubt, in_place, unreached
from pal_fast.attribution.latest_run import take
from pal_fast.attribution.targets import Target, check_logits, labels_to_try
from pal_fast.capture import buffers
from pal_fast.capture.capture import Capture
from pal_fast.capture.captured import Captured
from pal_fast.capture.model_run import Output, check_output, in_mode, logits_of, outside_inference_mode, values_of
from pal_fast.constants import FLAT_TOLERANCE, GROUPING_OF
from pal_fast.messages import first_line
from pal_fast.options import AttributionOptions


class Trial(NamedTuple):
    """The result of trying one layer: its output and gradient as (B, C, H, W), and its loss, reduced or not."""

    layout: str
    activation: Tensor
    gradient: Tensor | None
    loss: Tensor
    #: Whether its gradient goes through second derivatives above the layer.
    exact: bool


#: How often `check` times a step: at least, and at most within so many seconds. The fastest counts; the first is a
#: warm-up.
_LEAST_ROUNDS, _MOST_ROUNDS, _ROUNDS_SECONDS = 3, 30, 0.5

#: Tries one layer, given the logits, what was captured at it, labels, and a prior (B, h, w).
Try = Callable[[Tensor, Captured, Tensor | None, Tensor], Trial]


@dataclass
class LayerReport:
    """What `pal.check` found at one layer. Shapes are those that the loss sees."""

    name: str
    shape: tuple[int, ...] = ()  # (B, C, H, W)
    layout: str = ""
    weights_above: tuple[int, int] = (0, 0)  # above the layer: parameters with a nonzero gradient, and all
    weights_below: tuple[int, int] = (0, 0)
    flat_share: float = 0.0  # of samples (for channels="each": of their channels) with attribution constant in space
    flat_of: str = "samples"
    problems: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"layer {self.name}: {tuple(self.shape)} from {self.layout or 'unknown layout'}"]
        if self.shape:
            below, above = (f"{part[0]} of {part[1]}" for part in (self.weights_below, self.weights_above))
            lines.append(f"  the loss moves {below} parameters below, {above} above")
            lines.append(f"  attribution constant in space: {self.flat_share:.0%} of the {self.flat_of}")
        lines += [f"  slow: {note}" for note in self.slow]
        lines += [f"  PROBLEM: {problem}" for problem in self.problems]
        return "\n".join(lines)


@dataclass
class Report:
    """What `pal.check` found. `step` and `plain_step` are the seconds of a step on this batch with and without the
    loss; infinite if a problem made timing pointless."""

    layers: list[LayerReport]
    step: float
    plain_step: float

    @property
    def problems(self) -> list[str]:
        return [f"layer {layer.name!r}: {problem}" for layer in self.layers for problem in layer.problems]

    @property
    def cost(self) -> float:
        """A step with the loss, in plain steps."""
        return self.step / self.plain_step if math.isfinite(self.plain_step) else math.nan

    def __str__(self) -> str:
        cost = "" if self.problems else f"a step costs {self.cost:.2f} plain steps ({self.step * 1e3:.0f} ms here)"
        verdict = f"{len(self.problems)} problem(s)" if self.problems else "no problem found"
        return "\n".join([*map(str, self.layers), *([cost] if cost else []), verdict])


def check(
    model: nn.Module,
    images: Any,
    labels: Tensor | None,
    output: Output | None,
    capture: Capture,
    target: Target,
    options: AttributionOptions,
    trial: Try,
) -> Report:
    """See `PALLoss.check`."""
    check_output(output)
    images, labels = outside_inference_mode(model, images, labels)
    parameters: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    reports = {name: LayerReport(name) for name in capture.layers}
    timer = _Timer(next((i.device for i in values_of(images) if isinstance(i, Tensor)), torch.device("cpu")))

    def run() -> tuple[Tensor, list[Captured]]:
        logits = logits_of(model, images, output)
        check_logits(logits)
        return logits, take(model, logits, capture)

    with torch.inference_mode(False), torch.enable_grad(), _undisturbed(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logits, taken = run()
        labels = labels_to_try(logits, target, labels)
        for record in taken:
            _examine(reports[record.name], model, logits, record, labels, parameters, options, trial)
        del logits, taken
        plain = loss = math.inf
        if not any(report.problems for report in reports.values()):
            for _ in timer.rounds():
                with timer:
                    logits, taken = run()
                    _gradients(logits.square().mean(), parameters)
                plain = min(plain, timer.seconds)
                with timer:
                    logits, taken = run()
                    total = logits.square().mean()
                    for record in taken:
                        total = total + trial(logits, record, labels, _prior(logits)).loss.sum() / len(taken)
                    _gradients(total, parameters)
                loss = min(loss, timer.seconds)
    return Report(list(reports.values()), loss, plain)


def _examine(
    report: LayerReport,
    model: nn.Module,
    logits: Tensor,
    record: Captured,
    labels: Tensor | None,
    parameters: dict[str, Tensor],
    options: AttributionOptions,
    trial: Try,
) -> None:
    """Fills in one layer's report."""
    assert record.output is not None
    if record.changed_in_place:
        report.slow.append(in_place(record.name))
    try:
        layout, activation, gradient, loss, exact = trial(logits, record, labels, _prior(logits))
        report.shape, report.layout = tuple(activation.shape), layout
        moved = _gradients(loss.sum(), parameters)
    except (RuntimeError, ValueError) as error:
        report.problems.append(first_line(error))
        return
    below = {n for n, g in _gradients(record.output.float().sum(), parameters).items() if g is not None}
    above = {n for n, g in _gradients(logits.float().sum(), parameters).items() if g is not None} - below
    alive = {name for name, g in moved.items() if g is not None and bool((g != 0).any())}
    report.weights_below = (len(alive & below), len(below))
    report.weights_above = (len(alive & above), len(above))
    broken = [name for name, g in moved.items() if g is not None and not bool(torch.isfinite(g).all())]
    if broken:
        report.problems.append(
            f"the second derivative is not finite, first at parameter {broken[0]!r} ({len(broken)} in all): "
            + NORM_OF_ZERO
        )
    doubtful = doubt(model, logits, record.output) if exact else ""
    if doubtful:
        report.problems.append(doubtful)
    report.flat_share = _constant_share(activation, gradient, options)
    report.flat_of = "samples' channels" if options.channels == "each" else "samples"
    if gradient is not None and not bool((gradient != 0).any()):
        report.problems.append(unreached(model, record.name))
    elif report.flat_share == 1:
        report.problems.append(
            "the attribution is constant in space: there is nothing to align; choose another layer, another "
            "attribution or other channels"
        )
    elif not alive:
        report.problems.append("the loss moves no parameter: all those that it could move are frozen, or it is flat")
    report.slow += graph.slow_parts(graph.nodes_between(get_gradient_edge(logits).node, [record.output]))


def _constant_share(activation: Tensor, gradient: Tensor | None, options: AttributionOptions) -> float:
    """The share of the loss's own attribution that is constant in space and so correlates with no heatmap.

    With "mean" and "half", the share of samples whose map is flat; with "all", of samples whose elements'
    rms deviation from their channels' means is at most `FLAT_TOLERANCE` of their rms; with "each", of the samples'
    channels.
    """
    dtype = reference.widest_dtype(activation.device)
    f, g = activation.detach().to(dtype), None if gradient is None else gradient.to(dtype)
    a = reference.attribution(f, g, options.attribution, options.absolute)
    count = options.count(a.shape[1])
    a, grouping = a[:, :count], GROUPING_OF[options.channels]
    if grouping == "map":
        _, flat = reference.standardise(reference.attribution_map(a, count), (1, 2))
    elif grouping == "each":
        _, flat = reference.standardise(a, (2, 3))
    else:
        deviation = a - a.mean((2, 3), keepdim=True)
        flat = deviation.square().mean((1, 2, 3)) <= FLAT_TOLERANCE**2 * a.square().mean((1, 2, 3))
    return flat.float().mean().item()


def _gradients(scalar: Tensor, parameters: dict[str, Tensor]) -> dict[str, Tensor | None]:
    if not scalar.requires_grad or not parameters:
        return dict.fromkeys(parameters)
    found = torch.autograd.grad(scalar, list(parameters.values()), retain_graph=True, allow_unused=True)
    return dict(zip(parameters, found, strict=True))


def _prior(logits: Tensor) -> Tensor:
    """(B, 32, 32): a spot at a different position in each sample, never in the middle."""
    batch = logits.shape[0]
    centre = torch.linspace(0.2, 0.35, batch, device=logits.device)[:, None, None]
    line = torch.linspace(0, 1, 32, device=logits.device)
    return torch.exp(-((line[:, None] - centre) ** 2 + (line[None, :] - 2 * centre) ** 2) / 0.02)


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in train mode; on exit, mode, buffers and random state are restored."""
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with (
        torch.random.fork_rng(devices=devices),
        buffers.kept(buffers.stateful(model)),
        in_mode(model, training=True),
    ):
        yield


class _Timer:
    """`with timer:` measures `seconds`, including the device's work."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.seconds = 0.0

    @staticmethod
    def rounds() -> Iterator[None]:
        """More rounds for fast steps, whose timing other work on the machine disturbs more."""
        end = time.perf_counter() + _ROUNDS_SECONDS
        for index in range(_MOST_ROUNDS):
            if index < _LEAST_ROUNDS or time.perf_counter() < end:
                yield

    def __enter__(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self._cuda:
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self._start

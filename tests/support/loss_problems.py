"""Random problems for the fused loss from a dict of options, and their solution by the float64 reference."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import pal_fast
from pal_fast.constants import ATTRIBUTION, CHANNELS, COMBINE, NORMALIZE, REDUCTION, SCALE, SCORE
from support.compare import assert_close

#: Every value of every option, by its key in a problem's dict; each score with each scale that it accepts.
CHOICES: dict[str, list[Any]] = {
    "attribution": [*ATTRIBUTION],
    "channels": [*CHANNELS],
    "score": [(score, scale) for score in SCORE for scale in (SCALE if score == "cross_correlation" else ("sum",))],
    "reduction": [*REDUCTION],
    "combine": [*COMBINE],
    "normalize": [*NORMALIZE],
}

IMAGE = (56, 48)  # pixels, of every problem with landmarks

#: The values of keys that a problem's dict omits.
DEFAULTS: dict[str, Any] = {
    "shape": (2, 6, 7, 7),
    "dtype": torch.float32,
    "layout": "contiguous",  # or channels_last, transposed (needs a copy)
    "offset": 0.0,  # added to the activation: a large mean over a small spread
    "attribution": "grad_input",
    "absolute": True,
    "channels": "mean",
    "channel_count": None,
    "score": ("pearson", "sum"),
    "reduction": "mean",
    "landmarks": 5,  # how many; None: a dense heatmap; "small": a heatmap of another size
    "trouble": "none",  # "some": NaN, infinite and far-out landmarks; "sample": sample 0 has no valid one
    "visible": False,
    "weights": None,  # or "shared" (K,), "own" (B, K)
    "sample_weight": False,
    "combine": "sum",
    "normalize": "none",
    "sigma": 6.0,
    "needs": "both",  # or activation, gradient: the gradient requested
}


@dataclass
class Problem:
    """Arguments of `pal_fast.pal_loss`; `upstream` multiplies the loss before it is differentiated."""

    case: dict[str, Any]
    activation: Tensor | None
    gradient: Tensor | None
    tensors: dict[str, Tensor]
    options: dict[str, Any]
    upstream: Tensor

    def solve(self, backend: str, exact: bool = False) -> tuple[Tensor, list[Tensor]]:
        """The loss, and the requested gradients of activation and gradient. `exact`: in float64."""

        def given(tensor: Tensor) -> Tensor:
            return (tensor.double() if exact and tensor.is_floating_point() else tensor).detach()

        needs, layer = self.case["needs"], {}
        for name, tensor in (("activation", self.activation), ("gradient", self.gradient)):
            if tensor is not None:
                layer[name] = given(tensor).requires_grad_(needs in ("both", name))
        tensors = {name: given(tensor) for name, tensor in self.tensors.items()}
        loss = pal_fast.pal_loss(
            layer.get("activation"), layer.get("gradient"), **tensors, **self.options, backend=backend
        )
        wanted = [tensor for tensor in layer.values() if tensor.requires_grad]
        return loss.detach(), list(torch.autograd.grad((loss * given(self.upstream)).sum(), wanted))


def make(case: dict[str, Any], seed: int, device: str = "cpu") -> Problem:
    """The problem defined by `case` and `seed`, on `device`."""
    case = DEFAULTS | case
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    shape, dtype = case["shape"], case["dtype"]
    batch, _, height, width = shape
    computing = torch.float64 if dtype == torch.float64 else torch.float32
    # Like a network's: sparse and uneven activations, small gradients of either sign with zeros among them.
    activation = normal(*shape).relu() * (1 + normal(*shape).abs()) + 0.05 * normal(*shape) + case["offset"]
    gradient = torch.where(normal(*shape) > 1.5, 0.0, 0.01 * normal(*shape))
    if case["attribution"] == "grad":
        gradient = gradient + 0.01 * case["offset"]

    def laid_out(tensor: Tensor) -> Tensor:
        tensor = tensor.to(device, dtype)
        if case["layout"] == "transposed":
            return tensor.transpose(2, 3).contiguous().transpose(2, 3)
        channels_last = case["layout"] == "channels_last"
        return tensor.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    tensors: dict[str, Tensor] = {}
    options = {name: case[name] for name in ("attribution", "absolute", "channels", "channel_count", "reduction")}
    options["score"], options["scale"] = case["score"]
    if isinstance(case["landmarks"], int):
        count = case["landmarks"]
        points = torch.rand(batch, count, 2, generator=generator, dtype=torch.float64)
        points = points * torch.tensor([IMAGE[1] * 1.3, IMAGE[0] * 1.3]) - 8
        if case["trouble"] == "some" and batch and count > 3:
            points[0, 0, 0], points[0, 1, 1], points[-1, 2] = torch.nan, torch.inf, torch.tensor([-300.0, 4e4])
        if case["trouble"] == "sample":
            points[:1] = torch.nan
        tensors["landmarks"] = points.to(device, computing)
        if case["visible"]:
            tensors["visible"] = (torch.rand(batch, count, generator=generator) > 0.3).to(device)
        if case["weights"] is not None:
            rows = (batch, count) if case["weights"] == "own" else (count,)
            tensors["weights"] = (torch.rand(rows, generator=generator, dtype=torch.float64) + 0.1).to(
                device, computing
            )
        options |= {"image_size": IMAGE, **{name: case[name] for name in ("sigma", "combine", "normalize")}}
    else:
        size = (height, width) if case["landmarks"] is None else (2 * height + 1, width + 3)
        tensors["heatmap"] = torch.rand(batch, *size, generator=generator, dtype=torch.float64).to(device, computing)
        if case["trouble"] == "sample":
            tensors["heatmap"][:1, 0, 0] = torch.inf
    if case["sample_weight"]:
        weight = torch.rand(batch, generator=generator) + 0.2
        weight[1:2] = 0.0
        tensors["sample_weight"] = weight.to(device)
    upstream = normal(*((batch,) if case["reduction"] == "none" else ())).to(device, computing)
    uses_activation, uses_gradient = case["attribution"] != "grad", case["attribution"] != "activation"
    problem = Problem(
        case,
        laid_out(activation) if uses_activation else None,
        laid_out(gradient) if uses_gradient else None,
        tensors,
        options,
        upstream,
    )
    if (case["needs"] == "activation" and not uses_activation) or (case["needs"] == "gradient" and not uses_gradient):
        case["needs"] = "both"
    return problem


def typical_size(problem: Problem) -> float:
    """The usual size of the loss: 0.1, times the square root of the number of terms where the score is their sum."""
    score, scale = problem.case["score"]
    if score != "cross_correlation" or scale != "sum":
        return 0.1
    layer = problem.activation if problem.activation is not None else problem.gradient
    assert layer is not None
    _, channels, height, width = layer.shape
    return 0.1 * math.sqrt(height * width * (channels if problem.case["channels"] == "all" else 1))


def conditioning(problem: Problem) -> float:
    """The fraction of the centred heatmap that forms a gradient: the part orthogonal to the attribution.

    On a map of three cells this may be no more than the last digits that float32 holds.
    """
    tensors = {name: tensor for name, tensor in problem.tensors.items() if name != "sample_weight"}
    options = problem.options | {"score": "pearson", "scale": "sum", "reduction": "none"}
    alone = replace(problem, tensors=tensors, options=options, upstream=torch.ones(()))
    correlations, _ = alone.solve("reference", exact=True)
    most = correlations.abs().max().item() if correlations.numel() else 0.0
    return math.sqrt(max(1 - most * most, 1e-12))


def magnify(problem: Problem, exponents: tuple[int, int]) -> None:
    """Multiplies activation and gradient by powers of ten, in float32, and the upstream gradient by a loss scale."""
    assert problem.activation is not None
    assert problem.gradient is not None
    problem.activation, problem.gradient = (
        (tensor.double().clamp(-3, 3) * torch.tensor(10.0, dtype=torch.float64).pow(exponent).item()).float()
        for tensor, exponent in zip((problem.activation, problem.gradient), exponents, strict=True)
    )
    problem.upstream = torch.full_like(problem.upstream, 65536.0)


def check(problem: Problem, backend: str) -> tuple[Tensor, list[Tensor]]:
    """Solves the problem and asserts that it agrees with the float64 reference in value, dtype and strides."""
    # The larger gradient near 1, which float16 can hold.
    _, judged = problem.solve("reference", exact=True)
    largest = max((gradient.abs().max().item() for gradient in judged if gradient.numel()), default=0.0)
    if largest > 1e-30:
        problem.upstream = problem.upstream / largest
    wanted, judged = problem.solve("reference", exact=True)
    loss, gradients = problem.solve(backend)
    if 0 < largest <= 1e-30:
        # A landmark so far away that float32 cannot hold its Gaussian: the result must be as small.
        assert all((tensor.abs() <= 1e-25).all() for tensor in (loss - wanted, *gradients))
        return loss, gradients
    dtype = problem.case["dtype"]
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(loss, wanted, dtype, "loss", typical=typical_size(problem))
    layer = problem.activation if problem.activation is not None else problem.gradient
    assert layer is not None
    share = conditioning(problem)
    for index, (gradient, judge) in enumerate(zip(gradients, judged, strict=True)):
        assert gradient.dtype == dtype, gradient.dtype
        if problem.case["layout"] != "transposed":
            assert gradient.stride() == layer.stride(), f"strides {gradient.stride()}, wanted {layer.stride()}"
        size = judge.abs().max().item() if judge.numel() else 0.0
        if dtype == torch.float16 and 0 < size < 1e-3:
            # The other gradient is so much larger that this one leaves float16's range: computed again near 1.
            alone = replace(problem, upstream=problem.upstream / size)
            gradient, judge = alone.solve(backend)[1][index], alone.solve("reference", exact=True)[1][index]
        assert_close(gradient, judge, dtype, "gradient", typical=judge.norm().item() / share)
    return loss, gradients


def same_bits(first: tuple[Tensor, list[Tensor]], second: tuple[Tensor, list[Tensor]]) -> bool:
    return all(torch.equal(a, b) for a, b in zip([first[0], *first[1]], [second[0], *second[1]], strict=True))


def name_of(case: dict[str, Any]) -> str:
    """A test's id."""
    words = (str(value).removeprefix("torch.") for value in case.values())
    return ",".join(word.translate(str.maketrans("", "", " '()[]")) for word in words)

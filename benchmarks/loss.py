"""The fused loss from landmarks, against the reference in eager PyTorch and under torch.compile.

python -m benchmarks.loss            the shapes of the specification; results in benchmarks/results
python -m benchmarks.loss --quick    one small shape, seconds
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import pal_fast
from pal_fast import reference

from . import own_peers
from .command import main_of, run_subject
from .harness import BOUNDS, Peer, Prepared, Subject

IMAGE = 224  # pixels, height and width
SIGMA = 14.0  # the default: 1/16 of the image

#: (C, H, W) of the layers at which a face network is supervised.
LAYERS = ((1024, 14, 14), (512, 28, 28), (512, 14, 14), (2048, 7, 7))

TRAINING_BATCHES = (64, 16, 256)


@dataclass(frozen=True)
class LossCase:
    """One layer's output and its gradient."""

    batch: int
    channels: int
    height: int
    width: int
    landmarks: int = 68
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"

    def columns(self) -> dict[str, object]:
        return {
            "B": self.batch, "C": self.channels, "H": self.height, "W": self.width, "K": self.landmarks,
            "dtype": str(self.dtype).removeprefix("torch."), "layout": self.layout,
        }  # fmt: skip

    def __str__(self) -> str:
        shape = f"({self.batch}, {self.channels}, {self.height}, {self.width})"
        return f"{shape} {str(self.dtype).removeprefix('torch.')} {self.layout}, {self.landmarks} landmarks"


def cases(device: torch.device, quick: bool) -> Sequence[LossCase]:
    if quick:
        return [LossCase(2, 32, 14, 14, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    if device.type == "cpu":
        layers = [(32, 1024, 14, 14), (32, 512, 28, 28), (16, 2048, 7, 7)]
        return [LossCase(*shape) for shape in layers] + [
            LossCase(32, 1024, 14, 14, layout="channels_last"),
            LossCase(32, 1024, 14, 14, dtype=torch.bfloat16),
        ]
    return gpu_cases()


def gpu_cases() -> list[LossCase]:
    """Layers at training batch sizes, and tensors of 256 MB and more.

    Ordered so that a short run has a case of every target, in both dtypes and layouts, and then as many as it can.
    """
    kinds = [(dtype, layout) for layout in ("contiguous", "channels_last") for dtype in (torch.bfloat16, torch.float32)]

    def training(batch: int, layers: Sequence[tuple[int, int, int]]) -> list[LossCase]:
        return [LossCase(batch, *layer, dtype=dtype, layout=layout) for layer in layers for dtype, layout in kinds]

    def large(batch: int, layer: tuple[int, int, int]) -> list[LossCase]:
        """As many bytes in each dtype as `batch` samples of float32."""
        return [LossCase(batch * 4 // dtype.itemsize, *layer, dtype=dtype, layout=layout) for dtype, layout in kinds]

    first, *others = TRAINING_BATCHES
    return [
        *training(first, LAYERS[:1]),
        *large(320, LAYERS[0]),
        *training(first, LAYERS[1:]),
        *training(others[0], LAYERS),
        *large(160, LAYERS[1]),
        *large(640, LAYERS[3]),
        *training(others[1], LAYERS),
    ]


def inputs(case: LossCase, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Activation, gradient (B, C, H, W) and landmarks (B, K, 2): the same for the same case."""
    generator = torch.Generator(device).manual_seed(case.batch * 7919 + case.channels)
    shape = (case.batch, case.channels, case.height, case.width)
    layout = torch.channels_last if case.layout == "channels_last" else torch.contiguous_format

    def normal() -> Tensor:
        values = torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
        return values.to(case.dtype).to(memory_format=layout)

    activation, gradient = normal().relu_(), normal().mul_(1e-3)
    points = torch.rand(case.batch, case.landmarks, 2, generator=generator, device=device) * IMAGE
    return activation.requires_grad_(), gradient.requires_grad_(), points


def formula(activation: Tensor, gradient: Tensor, points: Tensor) -> Tensor:
    """What a user would write, directly from `pal_fast.reference`."""
    size = (activation.shape[2], activation.shape[3])
    heatmap = reference.landmark_heatmap(points, size, image_size=(IMAGE, IMAGE), sigma=SIGMA)
    annotated = reference.valid_landmarks(points, None).any(1)
    return reference.pal_loss(activation, gradient, heatmap, annotated=annotated, channel_count=activation.shape[1])


def judge(case: LossCase, device: torch.device) -> list[Tensor]:
    """Loss and both gradients in float64."""
    activation, gradient, points = inputs(case, device)
    f, g = activation.detach().double().requires_grad_(), gradient.detach().double().requires_grad_()
    loss = formula(f, g, points.double())
    return [loss.detach(), *torch.autograd.grad(loss, (f, g))]


def eager(case: LossCase, device: torch.device) -> Prepared:
    activation, gradient, points = inputs(case, device)
    return Prepared(lambda: formula(activation, gradient, points), (activation, gradient))


def compiled(case: LossCase, device: torch.device) -> Prepared:
    activation, gradient, points = inputs(case, device)
    run = own_peers.compiled(formula, activation, gradient, points)
    return Prepared(lambda: run(activation, gradient, points), (activation, gradient))


def ours(backend: str) -> Callable[[LossCase, torch.device], Prepared]:
    def prepare(case: LossCase, device: torch.device) -> Prepared:
        own_peers.check_backend(backend, device)
        activation, gradient, points = inputs(case, device)
        return Prepared(
            lambda: pal_fast.pal_loss(activation, gradient, landmarks=points, image_size=IMAGE, backend=backend),
            (activation, gradient),
        )

    return prepare


def traffic(case: LossCase, mode: str) -> int:
    """Bytes that must move (DESIGN 4) if all channels take part: 2M read, then 2M read and 2M written."""
    return {"forward": 2, "backward": 4, "both": 6}[mode] * tensor_bytes(case)


def tensor_bytes(case: LossCase) -> int:
    """Bytes of the activation, and equally of the gradient."""
    return case.batch * case.channels * case.height * case.width * case.dtype.itemsize


def work(case: LossCase, mode: str) -> int:
    """Operations per element: abs, multiply, subtract, add; then abs, sign and three multiplies."""
    elements = case.batch * case.channels * case.height * case.width
    return {"forward": 4, "backward": 5, "both": 9}[mode] * elements


SUBJECT = Subject(
    name="loss",
    peers=[
        Peer("reference", eager),
        Peer("compiled reference", compiled),
        Peer("cpu", ours("cpu")),
        Peer("triton", ours("triton")),
        Peer("cuda", ours("cuda")),
    ],
    cases=cases,
    judge=judge,
    bound=lambda case: BOUNDS[case.dtype],
    traffic=traffic,
    work=work,
)


def run(options: argparse.Namespace) -> int:
    return run_subject(SUBJECT, options)


main = main_of(SUBJECT.name, run, __doc__)

if __name__ == "__main__":
    raise SystemExit(main())

"""The attribution of a layer, starting from the images, against captum and pytorch-grad-cam.

    python -m benchmarks.attribution            a ResNet-18; results in benchmarks/results
    python -m benchmarks.attribution --quick    two small images, seconds

Forward is the network, its gradient at the layer and the map; backward goes from the map to weights below and above
the layer, through the gradient, as an attribution loss needs. The map is signed Grad*Input, which captum has, averaged
over channels. A detached result has no backward and cannot be trained on.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pal_fast

from .command import main_of, run_subject
from .harness import Peer, Prepared, Subject, UnavailableError, upstream_of

LAYER = "layer3"
CLASSES = 7


@dataclass(frozen=True)
class AttributionCase:
    batch: int
    image: int  # pixels, height and width

    def columns(self) -> dict[str, object]:
        return {"model": "resnet18", "layer": LAYER, "B": self.batch, "image": self.image, "dtype": "float32"}

    def __str__(self) -> str:
        return f"resnet18 {LAYER}, {self.batch} images of {self.image} x {self.image}"


def cases(device: torch.device, quick: bool) -> Sequence[AttributionCase]:
    if quick:
        return [AttributionCase(2, 64)]
    if device.type == "cpu":
        return [AttributionCase(4, 112), AttributionCase(8, 224)]
    return [AttributionCase(batch, 224) for batch in (1, 16, 64, 256)]


def model_and_images(
    case: AttributionCase, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, Tensor]:
    """The same weights and images for the same case. In eval mode, which pytorch-grad-cam requires."""
    try:
        from torchvision.models import resnet18
    except ImportError as error:
        raise UnavailableError("the network is torchvision's, which is not installed") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = resnet18(num_classes=CLASSES).eval()
        images = torch.randn(case.batch, 3, case.image, case.image)
    return model.to(device, dtype), images.to(device, dtype)


def weights_of(model: nn.Module) -> list[Tensor]:
    """The weights of the first layer, the last layer below the map, and two above it."""
    named = dict(model.named_parameters())
    return [named[name] for name in ("conv1.weight", "layer3.1.conv2.weight", "layer4.0.conv1.weight", "fc.weight")]


def by_hand(model: nn.Module, images: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """One forward, with the layer's output captured by a hook and its gradient taken with create_graph."""
    caught: list[Tensor] = []
    hook = model.get_submodule(LAYER).register_forward_hook(lambda module, args, output: caught.append(output))
    try:
        logits = model(images)
    finally:
        hook.remove()
    (gradient,) = torch.autograd.grad(logits.sum(), caught, create_graph=True)
    return combine(caught[0], gradient)


def judge(case: AttributionCase, device: torch.device) -> list[Tensor]:
    model, images = model_and_images(case, device, torch.float64)
    heatmap = by_hand(model, images, lambda f, g: (f * g).mean(1))
    return [heatmap.detach(), *torch.autograd.grad(heatmap, weights_of(model), upstream_of(heatmap))]


def autograd(case: AttributionCase, device: torch.device) -> Prepared:
    model, images = model_and_images(case, device)
    return Prepared(lambda: by_hand(model, images, lambda f, g: (f * g).mean(1)), weights_of(model))


def ours(case: AttributionCase, device: torch.device) -> Prepared:
    model, images = model_and_images(case, device)

    def combine(activation: Tensor, gradient: Tensor) -> Tensor:
        return pal_fast.attribution_map(activation, gradient, absolute=False)

    return Prepared(lambda: by_hand(model, images, combine), weights_of(model))


def our_picture(case: AttributionCase, device: torch.device) -> Prepared:
    model, images = model_and_images(case, device)
    return Prepared(lambda: pal_fast.attribute(model, LAYER, images, absolute=False)[0])


def captum(case: AttributionCase, device: torch.device) -> Prepared:
    try:
        from captum.attr import LayerGradientXActivation
    except ImportError as error:
        raise UnavailableError("captum is not installed: pip install 'pal_fast[bench]'") from error
    model, images = model_and_images(case, device)
    layer = LayerGradientXActivation(lambda batch: model(batch).sum(1), model.get_submodule(LAYER))
    return Prepared(lambda: layer.attribute(images, grad_kwargs={"create_graph": True}).mean(1), weights_of(model))


def grad_cam(case: AttributionCase, device: torch.device) -> Prepared:
    try:
        from pytorch_grad_cam import GradCAM
    except ImportError as error:
        raise UnavailableError("grad-cam is not installed: pip install 'pal_fast[bench]'") from error
    model, images = model_and_images(case, device)
    cam = GradCAM(model=model, target_layers=[model.get_submodule(LAYER)])
    targets = [lambda logits: logits.sum()] * case.batch
    return Prepared(lambda: torch.from_numpy(cam(input_tensor=images, targets=targets)))


def grad_cam_judge(case: AttributionCase, device: torch.device) -> list[Tensor]:
    """Grad-CAM's own definition in float64: channels weighted by their mean gradient, clipped, rescaled to [0, 1]."""

    def combine(activation: Tensor, gradient: Tensor) -> Tensor:
        return (gradient.mean((2, 3), keepdim=True) * activation).sum(1).clamp(min=0)

    def spread(heatmap: Tensor) -> Tensor:
        heatmap = heatmap - heatmap.amin((1, 2), keepdim=True)
        return heatmap / (1e-7 + heatmap.amax((1, 2), keepdim=True))

    model, images = model_and_images(case, device, torch.float64)
    heatmap = spread(by_hand(model, images, combine).detach()).unsqueeze(1)
    heatmap = F.interpolate(heatmap, (case.image, case.image), mode="bilinear", align_corners=False)
    return [spread(heatmap[:, 0].clamp(min=0)).cpu()]


SUBJECT = Subject(
    name="attribution",
    peers=[
        Peer("autograd by hand", autograd),
        Peer("captum", captum, package="captum"),
        Peer("pal_fast.attribution_map", ours),
        Peer("pytorch-grad-cam", grad_cam, judge=grad_cam_judge, package="grad-cam", note="Grad-CAM, detached, NumPy"),
        Peer("pal_fast.attribute", our_picture, note="detached"),
    ],
    cases=cases,
    judge=judge,
    # Rounding is amplified twice on its way through the network, and occasionally flips a ReLU or a maximum:
    # autograd by hand is 3e-3 from float64 at 224 x 224. Another formula would be off by 0.1 and more.
    bound=lambda case: 1e-2,
)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Convolutions in float32, which on a GPU have factors of 10 bits by default: no peer would be within the bound."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def run(options: argparse.Namespace) -> int:
    with warnings.catch_warnings(), without_tf32():
        warnings.filterwarnings("ignore", module="captum")
        return run_subject(SUBJECT, options)


main = main_of(SUBJECT.name, run, __doc__)

if __name__ == "__main__":
    raise SystemExit(main())

"""What `benchmarks.step` compares: networks with their attributed layer, and ways to write the training step."""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pal_fast import PALLoss
from pal_fast.nn import prepare_head

from ..harness import UnavailableError

CLASSES = 7
LANDMARKS = 68


@dataclass(frozen=True)
class Case:
    """A network, layer, image size, batch size and dtype: the left columns of the table."""

    model: str
    layer: str
    image: int
    batch: int
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.model} {self.layer} {self.image}x{self.image} batch {self.batch} {self.dtype_name}"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def build_model(case: Case, device: torch.device) -> nn.Module:
    """The same weights for the same case, in float32 or float64; a bfloat16 case runs under autocast."""
    torch.manual_seed(0)
    with torch.device(device):  # initialising VGG16 on a CPU takes seconds
        model = _network(case)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # Random dropout masks would differ between variants.
    return model.to(device, torch.float64 if case.dtype == torch.float64 else torch.float32).train()


def _network(case: Case) -> nn.Module:
    if case.model == "vit_small":
        import timm

        model: nn.Module = timm.create_model(
            "vit_small_patch16_224", pretrained=False, num_classes=CLASSES, img_size=case.image, dynamic_img_size=True
        )
        return model
    import torchvision

    return torchvision.models.get_model(case.model, weights=None, num_classes=CLASSES)


@dataclass(frozen=True)
class Batch:
    images: Tensor  # (B, 3, image, image)
    labels: Tensor  # (B,)
    landmarks: Tensor  # (B, 68, 2), pixels of the image


def build_batch(case: Case, device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(case.batch, 3, case.image, case.image, generator=generator)
    labels = torch.randint(CLASSES, (case.batch,), generator=generator)
    landmarks = torch.rand(case.batch, LANDMARKS, 2, generator=generator) * case.image
    landmarks[..., 1] = landmarks[..., 1].sort(1).values  # from top to bottom: the eyes come before the mouth
    dtype = torch.float64 if case.dtype == torch.float64 else torch.float32
    return Batch(images.to(device, dtype), labels.to(device), landmarks.to(device, dtype))


def head_share(case: Case) -> float:
    """h: the share of the forward's FLOPs that run after the layer, counted on one image."""
    return _head_share(case.model, case.layer, case.image)


@lru_cache(maxsize=64)
def _head_share(name: str, layer: str, image: int) -> float:
    """Counted on the meta device, where attention, too, is counted by its matrix products."""
    meta = torch.device("meta")
    model = build_model(Case(name, layer, image, 1, torch.float32), meta)
    until_layer = 0

    def on_layer(*_: object) -> None:
        nonlocal until_layer
        until_layer = counter.get_total_flops()

    model.get_submodule(layer).register_forward_hook(on_layer)
    with meta, torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, image, image))
    return 1.0 - until_layer / counter.get_total_flops()


class Step:
    """A training step up to the gradients: forward, loss, backward. Calling it returns the loss."""

    #: Whether operator calls can be counted; a compiled function cannot run under a dispatch mode.
    watchable = True
    #: Whether it runs in memory allocated at construction, so that a call has no peak of its own.
    replayed = False

    def __init__(self, case: Case, device: torch.device) -> None:
        self.model = build_model(case, device)
        self.batch = build_batch(case, device)
        self.case = case
        self.device = device

    def __call__(self) -> Tensor:
        self.model.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.case.dtype == torch.bfloat16):
            logits, attribution_loss = self.losses()
            loss = F.cross_entropy(logits, self.batch.labels)
            if attribution_loss is not None:
                loss = loss + attribution_loss
        loss.backward()
        return loss.detach()

    def losses(self) -> tuple[Tensor, Tensor | None]:
        """The logits (B, CLASSES), and the attribution loss, if any."""
        raise NotImplementedError


class Plain(Step):
    """Cross-entropy alone."""

    def losses(self) -> tuple[Tensor, Tensor | None]:
        return self.model(self.batch.images), None


def twice_differentiable() -> AbstractContextManager[object]:
    """Attention by the MATH kernel: PyTorch's others have no second derivative."""
    return sdpa_kernel(SDPBackend.MATH)


class Naive(Step):
    """The paper's formula as a user would write it, in eager PyTorch."""

    absolute = True

    def __init__(self, case: Case, device: torch.device) -> None:
        super().__init__(case, device)
        self.output: Tensor | None = None
        self.layer = self.model.get_submodule(case.layer)
        self.layer.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: object, output: Tensor) -> None:
        self.output = output

    def losses(self) -> tuple[Tensor, Tensor | None]:
        with twice_differentiable():
            return self.formula()

    def formula(self) -> tuple[Tensor, Tensor | None]:
        logits = self.model(self.batch.images)
        f, self.output = self.output, None
        assert f is not None
        (g,) = torch.autograd.grad(logits.sum(), f, create_graph=True)
        return logits, naive_loss((g.abs() if self.absolute else g) * f, self.batch.landmarks, self.case.image)


class Signed(Naive):
    """`Naive` with g * f instead of abs(g) * f: the judge of captum's attribution."""

    absolute = False


class Relaid(Naive):
    """`Naive` in channels_last, with PyTorch's choice of attention below the layer: the same mathematics through other
    kernels."""

    def __init__(self, case: Case, device: torch.device) -> None:
        super().__init__(case, device)
        self.model.to(memory_format=torch.channels_last)
        images = self.batch.images.to(memory_format=torch.channels_last)
        self.batch = Batch(images, self.batch.labels, self.batch.landmarks)
        self.above = ExitStack()

    def _keep(self, module: nn.Module, args: object, output: Tensor) -> None:
        super()._keep(module, args, output)
        self.above.enter_context(twice_differentiable())

    def losses(self) -> tuple[Tensor, Tensor | None]:
        with self.above:
            return self.formula()


class Captum(Step):
    """captum's LayerGradientXActivation, which runs its own forward."""

    judge = Signed

    def __init__(self, case: Case, device: torch.device) -> None:
        super().__init__(case, device)
        if importlib.util.find_spec("captum") is None:
            raise UnavailableError("captum is not installed")
        from captum.attr import LayerGradientXActivation

        layer = self.model.get_submodule(case.layer)
        self.attribution = LayerGradientXActivation(lambda images: self.model(images).sum(1), layer)

    def losses(self) -> tuple[Tensor, Tensor | None]:
        with twice_differentiable():
            logits = self.model(self.batch.images)
            a = self.attribution.attribute(self.batch.images, grad_kwargs={"create_graph": True})
        return logits, naive_loss(a, self.batch.landmarks, self.case.image)


class PAL(Step):
    """`pal_fast.PALLoss`."""

    backend: str | None = None

    def __init__(self, case: Case, device: torch.device) -> None:
        super().__init__(case, device)
        self.pal = PALLoss(self.model, case.layer, backend=self.backend)

    def losses(self) -> tuple[Tensor, Tensor | None]:
        logits = self.model(self.batch.images)
        return logits, self.pal(logits, self.batch.landmarks)


class Prepared(PAL):
    """`PALLoss` with the layers above replaced by `prepare_head`."""

    def __init__(self, case: Case, device: torch.device) -> None:
        super().__init__(case, device)
        prepare_head(self.model, case.layer, self.batch.images[:2])


def naive_loss(attribution: Tensor, landmarks: Tensor, image: int) -> Tensor:
    """The negative correlation of the channel mean with the landmarks' Gaussians. attribution: (B, C, H, W)."""
    attribution = as_map(attribution)
    m = attribution.to(torch.promote_types(attribution.dtype, torch.float32)).mean(1)
    height, width = m.shape[1:]
    sigma = image / 16
    x = (torch.arange(width, device=m.device, dtype=m.dtype) + 0.5) * image / width - 0.5
    y = (torch.arange(height, device=m.device, dtype=m.dtype) + 0.5) * image / height - 0.5
    gx = torch.exp(-((x - landmarks[:, :, :1]) ** 2) / (2 * sigma**2))  # (B, K, W)
    gy = torch.exp(-((y - landmarks[:, :, 1:]) ** 2) / (2 * sigma**2))  # (B, K, H)
    h = torch.einsum("bkh,bkw->bhw", gy, gx)
    z, zh = ((v - v.mean((1, 2), keepdim=True)) / v.std((1, 2), correction=0, keepdim=True) for v in (m, h))
    return -(z * zh).mean((1, 2)).mean()


def as_map(output: Tensor) -> Tensor:
    """Tokens (B, 1 + H * W, C) of a square image as (B, C, H, W), without the class token."""
    if output.ndim == 4:
        return output
    side = int((output.shape[1] - 1) ** 0.5)
    return output[:, 1:].transpose(1, 2).unflatten(2, (side, side))

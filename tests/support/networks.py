"""Small networks, and their expected gradients: the plain eager float64 double backward."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pal_fast import reference
from support.compare import relative_error


class SmallNet(nn.Module):
    """Two convolutional stages and a head; `act` after each normalisation."""

    def __init__(self, act: Callable[[], nn.Module] = nn.ReLU, norm: Callable[[int], nn.Module] = nn.BatchNorm2d):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), norm(6), act())
        self.middle = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), norm(8), act())
        self.top = nn.Sequential(nn.Conv2d(8, 10, 3, padding=1), norm(10), act())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(10, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.pool(self.top(self.middle(self.stem(images)))).flatten(1))

    def head(self, activation: Tensor) -> Tensor:
        return self.classifier(self.pool(self.top(activation)).flatten(1))


class Tokens(nn.Module):
    """A little ViT: patches, a class token, two blocks with scaled_dot_product_attention, class-token pooling."""

    def __init__(self, width: int = 16, patch: int = 4, grid: int = 4, pool: str = "class"):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, grid * grid + 1, width))
        self.blocks = nn.ModuleList([Block(width) for _ in range(3)])
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, 5)
        self.pool = pool

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.classifier(x[:, 0] if self.pool == "class" else x.mean(1))

    @staticmethod
    def grid_of(tokens: Tensor) -> Tensor:
        """(B, C, 4, 4), a block's output without the class token."""
        return tokens[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)

    def head_after(self, index: int) -> Callable[[Tensor], Tensor]:
        def head(x: Tensor) -> Tensor:
            for block in self.blocks[index + 1 :]:
                x = block(x)
            return self.classifier(self.norm(x)[:, 0] if self.pool == "class" else self.norm(x).mean(1))

        return head


class Block(nn.Module):
    def __init__(self, width: int, dropout: float = 0.0):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, count, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(attended)
        return x + self.mlp(self.norm2(x))


def batch(count: int = 4, size: int = 16, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """images (B, 3, S, S), labels (B,), landmarks (B, 5, 2)."""
    return (
        torch.randn(count, 3, size, size, dtype=dtype),
        torch.randint(0, 5, (count,)),
        torch.rand(count, 5, 2, dtype=dtype) * size,
    )


def batch_off_kinks(model: SmallNet, count: int = 4, together: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """A `batch` in float32 that rounding cannot take to another side of a kink, where the loss's gradient jumps.

    No input of the model's ReLUs is within 1e-5 of zero, and no gradient at `middle`, of the sum of the logits or of
    the labels' own, within 1e-5 of its root mean square (those that are zero are so in every precision). `together`
    images are given to the model at a time.
    """
    judge, inputs, outputs = twin(model), [], []
    relus = [module for module in judge.modules() if isinstance(module, nn.ReLU)]
    assert relus, "the model has no nn.ReLU"
    for relu in relus:
        relu.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
    judge.middle.register_forward_hook(lambda module, args, output: outputs.append(output))
    while True:
        images, labels, landmarks = batch(count, dtype=torch.float32)
        distances = []
        for part, own in zip(images.double().split(together or count), labels.split(together or count), strict=True):
            inputs.clear()
            logits = judge(part)
            distances += [input.abs().min() for input in inputs]
            for scalar in (logits.sum(), logits.gather(1, own[:, None]).sum()):
                (g,) = torch.autograd.grad(scalar, outputs[-1], retain_graph=True)
                distances.append(g[g != 0].abs().min() / g.square().mean().sqrt())
        if min(distances) > 1e-5:
            return images, labels, landmarks


def twin(model: nn.Module) -> nn.Module:
    """A float64 copy without hooks, for the reference double backward."""
    return copy.deepcopy(model).double()


def judged(
    model: nn.Module,
    layer: str,
    images: Tensor,
    labels: Tensor | None,
    landmarks: Tensor,
    *,
    view: Callable[[Tensor], Tensor] = lambda f: f,
    scalar: Callable[[Tensor], Tensor] = torch.sum,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss (plus cross-entropy, where labels are given) and the parameter gradients of a `twin`, by the reference
    and `create_graph=True` in plain eager float64."""
    model = model.double()
    caught: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda m, a, out: caught.append(out))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        logits = model(images.double())
    handle.remove()
    (g,) = torch.autograd.grad(scalar(logits), caught[0], create_graph=True)
    f, g = view(caught[0]), view(g)
    size = (images.shape[-2], images.shape[-1])
    h = reference.landmark_heatmap(landmarks.double(), (f.shape[2], f.shape[3]), image_size=size, sigma=max(size) / 16)
    loss = reference.pal_loss(f, g, h, channel_count=f.shape[1])
    if labels is not None:
        loss = loss + nn.functional.cross_entropy(logits, labels)
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return loss.detach(), {
        n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, gradients, strict=True)
    }


def by_math(*tensors: Tensor) -> Tensor:
    """Attention by PyTorch's MATH kernel, which can be differentiated twice."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return nn.functional.scaled_dot_product_attention(*tensors)


def derivatives_of(call: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """The output, its derivatives, and the derivatives of those."""
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    output = call(*tensors)
    wide = torch.promote_types(output.dtype, torch.float32)
    first = torch.autograd.grad(output.to(wide).pow(3).sum(), tensors, create_graph=True)
    second = torch.autograd.grad(sum(g.to(wide).square().sum() for g in first), tensors)
    return [output.detach(), *(g.detach() for g in first), *second]


def by_hand(model: nn.Module, images: Tensor, labels: Tensor | None, landmarks: Tensor) -> Tensor:
    """A SmallNet's step on 16x16 images under the current autocast with the loss in float32: the error of rounding
    the activations."""
    held: list[Tensor] = []
    handle = model.get_submodule("middle").register_forward_hook(lambda m, a, out: held.append(out))
    logits = model(images)
    handle.remove()
    (g,) = torch.autograd.grad(logits.sum(), held[0], create_graph=True)
    with torch.autocast("cpu", enabled=False):
        h = reference.landmark_heatmap(landmarks, (8, 8), image_size=(16, 16), sigma=1.0)
        loss = reference.pal_loss(held[0], g, h, channel_count=8)
        return loss if labels is None else loss + nn.functional.cross_entropy(logits.float(), labels)


def gradient_error(model: nn.Module, wanted: dict[str, Tensor]) -> float:
    """The relative L2 error of all gradients together."""
    got = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    assert got.keys() == wanted.keys()
    return relative_error(
        torch.cat([got[n].flatten().double() for n in wanted]), torch.cat([wanted[n].flatten() for n in wanted])
    )


class Scriptable(nn.Sequential):
    """(B, 3, 16, 16) -> (B, 5), without what torch.jit.script refuses."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(784, 5))


def hooks(model):
    """The modules' hooks, and the flags that the modules keep about how to call them."""
    return [
        entry
        for module in model.modules()
        for name, entries in vars(module).items()
        if name.startswith(("_forward_hooks", "_forward_pre_hooks"))
        for entry in entries.items()
    ]

"""Finite differences at kinks: both passes stay on the main pass's side, or are rejected if they cannot."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.compare import relative_error
from support.differences import Calling, Kinked, finite
from support.networks import SmallNet, batch, batch_off_kinks, gradient_error, judged, twin
from torch import nn

import pal_fast
import pal_fast.nn
from pal_fast.attribution import finite_difference
from pal_fast.attribution.graph import holds


class Scripted(nn.Module):
    """A ReLU inside TorchScript, invisible to Python."""

    def __init__(self):
        super().__init__()
        self.relu = torch.jit.script(nn.ReLU())

    def forward(self, x):
        return self.relu(x)


SLOPES = torch.linspace(0, 0.5, 10, dtype=torch.float64)
KINKS = {
    "ReLU": nn.ReLU,
    "ReLU in place": lambda: nn.ReLU(inplace=True),
    "relu_ with its result unused": lambda: Calling(lambda x: (x.relu_(), x)[1]),
    "ReLU6": nn.ReLU6,
    "clamp": lambda: Calling(lambda x: x.clamp(min=-0.5, max=1.0)),
    "clamp by tensors": lambda: Calling(lambda x: torch.clamp(x, max=torch.tensor(0.2))),
    "clamp_min_": lambda: Calling(lambda x: x.clamp_min_(0.3)),
    "LeakyReLU": nn.LeakyReLU,
    "LeakyReLU in place": lambda: nn.LeakyReLU(0.3, inplace=True),
    "PReLU": lambda: nn.PReLU(10),
    "PReLU without positions": lambda: Calling(lambda x: x * F.prelu(x.mean((2, 3)), SLOPES)[..., None, None]),
    "Hardswish": nn.Hardswish,
    "Hardswish in place": lambda: nn.Hardswish(inplace=True),
    "our Hardsigmoid": pal_fast.nn.Hardsigmoid,
    "abs": lambda: Calling(abs),
    "max_pool2d": lambda: nn.MaxPool2d(3, stride=2, padding=1),
    "adaptive_max_pool2d": lambda: nn.AdaptiveMaxPool2d((2, 3)),
}


@pytest.mark.parametrize("kink", KINKS)
def test_both_passes_stay_on_the_main_passs_side_of_each_kink(kink):
    model = Kinked(KINKS[kink]()).double()
    images, labels, landmarks = batch()
    wanted, gradients = judged(twin(model), "middle", images, labels, landmarks)
    pal = finite(model, "middle", model.head)
    logits = model(images)
    loss = nn.functional.cross_entropy(logits, labels) + pal(logits, landmarks)
    loss.backward()
    assert relative_error(loss, wanted) < 1e-10
    assert gradient_error(model, gradients) < 1e-5


def test_without_keeping_the_side_the_error_is_of_order_1(monkeypatch):
    monkeypatch.setitem(finite_difference.STEP, torch.float64, finite_difference.STEP[torch.float32])
    images, _, landmarks = batch(8, 32)
    model = SmallNet().double()
    _, gradients = judged(twin(model), "middle", images, None, landmarks)

    def error():
        model.zero_grad()
        finite(model, "middle", model.head)(model(images), landmarks).backward()
        return gradient_error(model, gradients)

    assert error() < 3e-4
    monkeypatch.setattr(finite_difference, "kinks_among", lambda nodes: [])
    assert error() > 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_resnet_like_head_with_relu_and_batch_norm_equals_the_double_backward(dtype):
    model = SmallNet().to(dtype)
    judge = twin(model)
    images, labels, landmarks = batch_off_kinks(model, 8) if dtype == torch.float32 else batch(8)
    wanted, gradients = judged(judge, "middle", images, labels, landmarks)
    pal = finite(model, "middle", model.head)
    for _ in range(2):
        model.zero_grad()
        logits = model(images)
        loss = nn.functional.cross_entropy(logits, labels) + pal(logits, landmarks)
        loss.backward()
        assert relative_error(loss, wanted) < (1e-10 if dtype == torch.float64 else 1e-5)
        assert gradient_error(model, gradients) < (1e-6 if dtype == torch.float64 else 1e-2)
    judge(images.double())
    for name, buffer in judge.named_buffers():
        assert relative_error(model.get_buffer(name), buffer) < 1e-5, name


@pytest.mark.parametrize(
    ("kink", "node"),
    [
        (lambda: Calling(lambda x: x.amax((2, 3), keepdim=True)), "AmaxBackward"),
        (lambda: Calling(lambda x: torch.maximum(x, x.mean(0, keepdim=True))), "MaximumBackward"),
        (lambda: Calling(lambda x: x.flatten(2).sort(2)[0].unflatten(2, x.shape[2:])), "SortBackward"),
        (lambda: Calling(lambda x: x + x.round()), "RoundBackward"),
        (nn.SELU, "EluBackward"),
        (lambda: Calling(lambda x: F.max_pool2d(x, 2, return_indices=True)[0]), "MaxPool2DWithIndicesBackward"),
        (lambda: nn.Threshold(0.1, 0.0), "ThresholdBackward"),
        (lambda: Calling(lambda x: torch.complex(x, 2 * x).abs()), "AbsBackward"),
        (Scripted, "ReluBackward"),
    ],
)
def test_a_kink_whose_side_cannot_be_kept_is_refused(kink, node):
    model = Kinked(kink())
    images, _, landmarks = batch(dtype=torch.float32)
    pal = finite(model, "middle", model.head)
    with pytest.raises(RuntimeError, match=f"wrong for heads with kinks, and {node}"):
        pal(model(images), landmarks)


class OwnReLU(torch.autograd.Function):
    """A ReLU as a custom Function: only its code shows the kink."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.relu()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (x > 0)


class OwnTanh(torch.autograd.Function):
    """Smooth, but without a second derivative."""

    @staticmethod
    def forward(ctx, x):
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        return gradient * (1 - y**2)


def fake_quantised(x):
    return torch.fake_quantize_per_tensor_affine(x, 0.05, 0, -128, 127)


def warm_script():
    scripted = torch.jit.script(nn.Sequential(nn.ReLU(), nn.Tanh()))
    for _ in range(3):
        scripted(torch.ones(2, 10, 4, 4, requires_grad=True))
    return scripted


@pytest.mark.parametrize(
    ("part", "node"),
    [
        (lambda: Calling(OwnReLU.apply), "OwnReLUBackward"),
        (lambda: Calling(OwnTanh.apply), "OwnTanhBackward"),
        (warm_script, "DifferentiableGraph"),
        (lambda: Calling(fake_quantised), "FakeQuantize"),
    ],
    ids=["Function", "smooth Function", "script", "fake_quantize"],
)
def test_an_opaque_operation_that_may_have_a_kink_is_refused(part, node):
    model = Kinked(part())
    images, _, landmarks = batch(dtype=torch.float32)
    pal = finite(model, "middle", model.head)
    with pytest.raises(RuntimeError, match=f"wrong for heads with kinks, and .*{node}"):
        pal(model(images), landmarks)


def test_a_function_that_declares_itself_smooth_is_accepted(monkeypatch):
    monkeypatch.setattr(OwnTanh, "smooth", True, raising=False)
    model = Kinked(Calling(OwnTanh.apply)).double()
    images, _, landmarks = batch()
    judge = twin(model)
    judge.top[1].function = torch.tanh
    _, gradients = judged(judge, "middle", images, None, landmarks)
    finite(model, "middle", model.head)(model(images), landmarks).backward()
    assert gradient_error(model, gradients) < 1e-5


def test_a_compiled_head_runs_eagerly():
    """So that its kinks keep their sides, and a dependence between its samples is seen although its graph hides it."""
    model = SmallNet().double()
    images, _, landmarks = batch()
    _, gradients = judged(twin(model), "middle", images, None, landmarks)
    model.top = torch.compile(model.top, backend="aot_eager")
    gradients = {name.replace("top.", "top._orig_mod."): gradient for name, gradient in gradients.items()}
    assert holds(model(images).grad_fn, "CompiledFunction")
    pal = finite(model, "middle", model.head)
    pal(model(images), landmarks).backward()
    assert gradient_error(model, gradients) < 1e-6


def test_roi_pool_is_a_kink_and_roi_align_is_not():
    ops = pytest.importorskip("torchvision.ops")
    boxes = torch.tensor([[b, 0.0, 0.0, 6.0, 6.0] for b in range(4)], dtype=torch.float64)
    images, _, landmarks = batch()
    pooled = Kinked(Calling(lambda x: ops.roi_pool(x, boxes, 3))).double()
    with pytest.raises(RuntimeError, match=r"roi_pool|ROIPool"):
        finite(pooled, "middle", pooled.head)(pooled(images), landmarks)
    aligned = Kinked(Calling(lambda x: ops.roi_align(x, boxes, 3))).double()
    loss = finite(aligned, "middle", aligned.head)(aligned(images), landmarks)
    loss.backward()
    assert aligned.stem[0].weight.grad.norm() > 0


def test_a_fused_relu_is_detected():
    model = SmallNet(act=nn.Identity)
    pal_fast.nn.prepare_head(model, "middle", torch.randn(2, 3, 16, 16))
    model.top[1].fused_relu = True
    images, _, landmarks = batch(dtype=torch.float32)
    pal = finite(model, "middle", model.head)
    with pytest.raises(RuntimeError, match="wrong for heads with kinks"):
        pal(model(images), landmarks)

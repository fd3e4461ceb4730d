"""Custom autograd Functions above the layer: a backward that is not differentiable, or only in part, is reported."""

from __future__ import annotations

import warnings

import pytest
import torch
from support.compare import relative_error
from support.networks import SmallNet, batch, gradient_error, judged, twin

import pal_fast

Function = torch.autograd.Function


class Square(Function):
    """Saves its input: twice differentiable."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * 2 * x


class Exponential(Function):
    """Saves its output: twice differentiable."""

    @staticmethod
    def forward(ctx, x):
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return grad * y


class Scaled(Function):
    """Takes a non-tensor argument and a weight."""

    @staticmethod
    def forward(ctx, name, x, weight):
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return None, grad * weight, (grad * x).sum()


class Reversal(Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return -0.3 * grad


class StraightThrough(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.inside = x.abs() < 0.5
        return (x * 8).round() / 8

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.inside


class WithoutGrad(Square):
    """Its backward runs without grad mode, as one that calls a hand-written kernel does."""

    @staticmethod
    def backward(ctx, grad):
        with torch.no_grad():
            return grad * 2 * ctx.saved_tensors[0]


class NumPyBackward(Square):
    @staticmethod
    def backward(ctx, grad):
        return torch.from_numpy(grad.detach().numpy() * 2 * ctx.saved_tensors[0].detach().numpy())


class OnceDifferentiable(Square):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * 2 * ctx.saved_tensors[0]


class SavesIntermediate(Function):
    """Saves an intermediate that is neither an input nor an output."""

    @staticmethod
    def forward(ctx, x):
        slope = 2 * x
        ctx.save_for_backward(slope)
        return x**2

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


class KeepsIntermediate(SavesIntermediate):
    @staticmethod
    def forward(ctx, x):
        ctx.slope = 2 * x.detach()
        return x**2

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.slope


class Net(SmallNet):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        x = self.top(self.function(self.middle(self.stem(images))))
        return self.classifier(self.pool(x).flatten(1))


RIGHT = {
    "saves its input": (Square.apply, None),
    "saves its output": (Exponential.apply, None),
    "has other arguments": (lambda x: Scaled.apply("a name", x, torch.tensor(0.7, dtype=x.dtype)), None),
    "reverses the gradient": (Reversal.apply, None),
    "straight through": (StraightThrough.apply, None),
}


@pytest.mark.parametrize("case", RIGHT)
def test_a_twice_differentiable_function_is_exact_and_does_not_warn(case):
    model = Net(RIGHT[case][0]).double()
    images, labels, landmarks = batch()
    wanted, gradients = judged(twin(model), "middle", images, labels, landmarks)
    pal = pal_fast.PALLoss(model, "middle")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits = model(images)
        loss = torch.nn.functional.cross_entropy(logits, labels) + pal(logits, landmarks)
    loss.backward()
    assert relative_error(loss, wanted) < 1e-12
    assert gradient_error(model, gradients) < 1e-10
    assert pal.check(images).problems == []


@pytest.mark.parametrize("function", [WithoutGrad, NumPyBackward, OnceDifferentiable])
@pytest.mark.parametrize("place", ["at the layer", "at the logits"])
def test_a_backward_that_is_not_differentiable_is_refused_by_name(function, place):
    """Autograd takes its result for a constant, so comparing with the double backward would not detect it."""
    if place == "at the layer":
        model, after = Net(function.apply), torch.clone
    else:
        model, after = SmallNet(), function.apply
    images, _, landmarks = batch(dtype=torch.float32)
    pal = pal_fast.PALLoss(model, "middle")
    reason = f"{function.__name__} lies between it and the logits, and its backward cannot be .*finite_difference"
    with pytest.raises(RuntimeError, match=reason):
        pal(after(model(images)), landmarks)
    if place == "at the layer":
        (problem,) = pal.check(images).problems
        assert function.__name__ in problem
    with pal_fast.PALLoss(model, "middle", attribution="activation") as activation:
        assert activation(after(model(images)), landmarks).isfinite()


@pytest.mark.parametrize("function", [SavesIntermediate, KeepsIntermediate])
def test_a_backward_that_hides_its_input_warns_once(function):
    model = Net(function.apply)
    images, _, landmarks = batch(dtype=torch.float32)
    pal = pal_fast.PALLoss(model, "middle")
    with pytest.warns(
        UserWarning, match=f"the derivative of {function.__name__} is independent of .*gradgradcheck"
    ) as w:
        pal(model(images), landmarks)
    assert [warning.filename for warning in w] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pal(model(images), landmarks)
    (problem,) = pal.check(images).problems
    assert f"the derivative of {function.__name__} is independent" in problem


def test_functions_below_the_layer_need_only_a_first_derivative():
    model = Net(torch.clone)
    model.stem.append(_Module(WithoutGrad))
    images, _, landmarks = batch(dtype=torch.float32)
    pal = pal_fast.PALLoss(model, "middle")
    pal(model(images), landmarks).backward()
    assert model.stem[0].weight.grad.any()


class _Module(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)

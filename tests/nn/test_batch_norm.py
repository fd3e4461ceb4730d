"""pal_fast.nn.BatchNorm against PyTorch's in float64: values, first and second derivatives, running statistics."""

from __future__ import annotations

import copy
import functools
import itertools
import warnings

import pytest
import torch
from support.compare import TOLERANCE, relative_error
from support.kink import clear_of_the_kink
from support.threads import one_thread
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import pal_fast.nn
from pal_fast.nn import batch_norm_operators

SHAPES = [(6, 7), (5, 9, 3), (4, 5, 7, 7), (8, 70, 2, 3), (2, 3, 40, 41), (3, 16, 8, 8)]
LAID_OUT = [(shape, last) for shape in SHAPES for last in (False, True) if len(shape) == 4 or not last]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

pytestmark = pytest.mark.skipif(
    not batch_norm_operators.namespace_on(torch.device("cpu")),
    reason="the extension is not built, so PyTorch's own layers serve",
)


def layers(shape: tuple[int, ...], dtype: torch.dtype, **options: object) -> tuple[nn.Module, nn.Module]:
    """Ours, with parameters of the computing dtype, and PyTorch's in float64, in the same state."""
    ours_type, theirs_type = {
        4: (pal_fast.nn.BatchNorm2d, nn.BatchNorm2d),
    }.get(len(shape), (pal_fast.nn.BatchNorm1d, nn.BatchNorm1d))
    theirs = theirs_type(shape[1], dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
        if theirs.running_mean is not None:
            theirs.running_mean.normal_()
            theirs.running_var.uniform_(0.5, 2.0)
    computing = torch.float64 if dtype == torch.float64 else torch.float32
    ours = ours_type(shape[1], dtype=computing, **options)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def results(layer: nn.Module, input: Tensor, grad: Tensor, direction: Tensor, relu: bool) -> dict[str, Tensor]:
    """The output, the first derivatives, and those of <direction, dx> + sum (dw / s)^2 + sum (db / s)^3, s = sqrt(M).

    dw and db are sums over M elements: without the division float16 overflows.
    """
    input, grad = input.detach().requires_grad_(), grad.detach().requires_grad_()
    output = layer(input)
    if relu and not getattr(layer, "fused_relu", False):
        output = output.relu()
    dx, dw, db = torch.autograd.grad(output, (input, layer.weight, layer.bias), grad, create_graph=True)
    s = (input.numel() / input.shape[1]) ** 0.5
    scalar = (dx * direction).sum() + (dw / s).square().sum() + (db / s).pow(3).sum()
    second = torch.autograd.grad(scalar, (input, grad, layer.weight))
    named = {"output": output, "dx": dx, "dw": dw, "db": db, "d2x": second[0], "d2grad": second[1], "d2w": second[2]}
    return named | dict(layer.named_buffers())


@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "channels_last"), LAID_OUT, ids=str)
def test_agrees_with_pytorch_in_float64_up_to_the_second_derivative(
    shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype, training: bool, relu: bool
) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    ours, theirs = (layer.train(training) for layer in layers(shape, dtype))
    ours.fused_relu = relu
    tensors = [torch.randn(shape, dtype=torch.float64).to(dtype).to(memory_format=layout) for _ in range(3)]
    statistics = (theirs.running_mean, theirs.running_var)
    tensors[0] = clear_of_the_kink(tensors[0], [theirs.weight.detach(), theirs.bias.detach(), *statistics])
    got = results(ours, *tensors, relu)
    wanted = results(theirs, *(tensor.double() for tensor in tensors), relu)
    assert got["output"].dtype == got["dx"].dtype == got["d2x"].dtype == dtype
    assert got["output"].stride() == got["dx"].stride() == got["d2x"].stride() == tensors[0].stride()
    # In float32 the second derivative is a difference of sums of either sign: ten bounds of the loss.
    for name, value in got.items():
        error = relative_error(value.reshape(-1), wanted[name].reshape(-1))
        assert error <= 10 * TOLERANCE[dtype], f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_gradcheck_and_gradgradcheck(training: bool, affine: bool) -> None:
    layer = pal_fast.nn.BatchNorm2d(3, affine=affine, dtype=torch.float64).train(training)
    input = torch.randn(2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    parameters = dict(layer.named_parameters())

    def call(input: Tensor, *values: Tensor) -> Tensor:
        fresh = copy.deepcopy(dict(layer.named_buffers()))
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)) | fresh, (input,))

    values = [torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in parameters]
    assert gradcheck(call, (input, *values))
    assert gradgradcheck(call, (input, *values))


def test_a_mean_far_from_zero_costs_no_accuracy_of_the_variance() -> None:
    ours, theirs = layers((8, 4, 16, 16), torch.float32)
    input = torch.randn(8, 4, 16, 16) + 1000.0
    torch.testing.assert_close(ours(input).double(), theirs(input.double()), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours.running_var.double(), theirs.running_var, rtol=1e-5, atol=0)


def test_every_output_element_is_written(poisoned_memory: None) -> None:
    ours, _ = layers((3, 5, 5, 3), torch.float32)
    tensors = [torch.randn(3, 5, 5, 3) for _ in range(3)]
    for name, value in results(ours, *tensors, False).items():
        assert not value.isnan().any(), name


@pytest.mark.parametrize("options", [{"momentum": None}, {"momentum": 0.3}, {"track_running_stats": False}], ids=str)
def test_running_statistics_are_updated_as_pytorchs(options: dict[str, object]) -> None:
    ours, theirs = layers((4, 6, 5, 5), torch.float64, **options)
    for _ in range(3):
        input = torch.randn(4, 6, 5, 5, dtype=torch.float64)
        torch.testing.assert_close(ours(input), theirs(input))
    for layer in (ours, theirs):
        layer.eval()
    torch.testing.assert_close(ours(input), theirs(input))
    for (name, buffer), other in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, msg=name)


def test_statistics_that_are_no_longer_tracked_stay_as_they_are() -> None:
    ours, theirs = layers((4, 6, 5, 5), torch.float64)
    for layer in (ours, theirs):
        layer.track_running_stats = False
    input = torch.randn(4, 6, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(ours(input), theirs(input))
    for (name, buffer), other in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, msg=name)


def test_a_half_precision_layer_keeps_half_precision_statistics() -> None:
    ours = pal_fast.nn.BatchNorm2d(4).bfloat16()
    theirs = nn.BatchNorm2d(4).bfloat16()
    input = torch.randn(8, 4, 6, 6).bfloat16()
    torch.testing.assert_close(ours(input), theirs(input), rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean, rtol=2e-2, atol=2e-3)
    assert ours.running_mean.dtype == torch.bfloat16


def test_runs_under_autocast_as_pytorchs_does() -> None:
    convolution = nn.Conv2d(3, 4, 3)
    ours, theirs = layers((2, 4, 6, 6), torch.float32)
    theirs.float()
    input = torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, wanted = ours(convolution(input)), theirs(convolution(input))
        (gradient,) = torch.autograd.grad(got.float().square().sum(), ours.weight, create_graph=True)
    assert got.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(got, wanted, rtol=2e-2, atol=2e-2)
    assert gradient.dtype == torch.float32


def test_inputs_of_other_strides_agree_with_pytorch() -> None:
    ours, theirs = layers((4, 5, 6, 7), torch.float64)
    input = torch.randn(4, 7, 6, 5, dtype=torch.float64).transpose(1, 3)
    torch.testing.assert_close(ours(input), theirs(input))


def test_type_state_dict_and_errors_are_pytorchs() -> None:
    ours = pal_fast.nn.BatchNorm2d(3)
    assert isinstance(ours, nn.BatchNorm2d)
    assert ours.state_dict().keys() == nn.BatchNorm2d(3).state_dict().keys()
    with pytest.raises(ValueError, match="4D"):
        ours(torch.randn(2, 3))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ours(torch.randn(1, 3, 1, 1))


def test_a_third_derivative_raises() -> None:
    layer = pal_fast.nn.BatchNorm1d(3)
    input = torch.randn(5, 3, requires_grad=True)
    (first,) = torch.autograd.grad(layer(input).pow(3).sum(), input, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable twice"):
        second.sum().backward()


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("training", [False, True])
def test_a_forward_mode_derivative_raises(training: bool, trained: bool) -> None:
    layer = pal_fast.nn.BatchNorm2d(3, track_running_stats=not training).train(training).requires_grad_(trained)
    input, direction = torch.randn(2, 2, 3, 4, 4)
    with pytest.raises(NotImplementedError, match=r"no forward-mode derivative.*PyTorch's own layer.*restore\(\)"):
        torch.func.jvp(layer, (input,), (direction,))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        layer(forward_ad.make_dual(input, direction))


@one_thread()
def test_results_are_bit_identical_in_every_run_and_for_any_number_of_threads() -> None:
    ours, _ = layers((16, 32, 9, 9), torch.float32)
    for layout in (torch.contiguous_format, torch.channels_last):
        tensors = [torch.randn(16, 32, 9, 9).to(memory_format=layout) for _ in range(3)]
        runs = []
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            runs.append(results(copy.deepcopy(ours), *tensors, False))
        for run in runs[1:]:
            assert all(torch.equal(value, runs[0][name]) for name, value in run.items())


def test_operators_pass_opcheck() -> None:
    operators = torch.ops.pal_fast
    input, grad, v = (torch.randn(3, 4, 5, 5, requires_grad=True) for _ in range(3))
    weight, bias = torch.rand(4, requires_grad=True), torch.rand(4, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = input.detach()
        torch.library.opcheck(
            operators.batch_norm_statistics.default, (plain, torch.zeros(4), torch.ones(4), True, 0.1, 1e-5)
        )
        statistics = operators.batch_norm_statistics(plain, None, None, True, 0.1, 1e-5)
        for training in (True, False):
            torch.library.opcheck(operators.batch_norm.default, (input, weight, bias, statistics, training, False))
            arguments = (grad, input, weight, bias, statistics, training, True)
            torch.library.opcheck(operators.batch_norm_backward.default, (*arguments, True, True))
            _, sums = operators.batch_norm_backward(*arguments, True, True)
            arguments = (v.detach(), None, *(t.detach() for t in (grad, input, weight, bias)), statistics)
            torch.library.opcheck(
                operators.batch_norm_double_backward.default, (*arguments, sums.detach(), training, True, True)
            )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_fakes_know_every_dtype(dtype: torch.dtype) -> None:
    operators = torch.ops.pal_fast
    computing = torch.float64 if dtype == torch.float64 else torch.float32
    input, grad, v = (torch.randn(3, 4, 5, 5).to(dtype) for _ in range(3))
    weight, bias = torch.rand(4, dtype=computing), torch.rand(4, dtype=computing)
    check = functools.partial(torch.library.opcheck, test_utils="test_faketensor")
    check(operators.batch_norm_statistics.default, (input, None, None, True, 0.1, 1e-5))
    statistics = operators.batch_norm_statistics(input, None, None, True, 0.1, 1e-5)
    for training, need_input, need_sums in itertools.product((False, True), repeat=3):
        check(operators.batch_norm.default, (input, weight, bias, statistics, training, False))
        arguments = (grad, input, weight, bias, statistics, training, False, need_input, need_sums)
        check(operators.batch_norm_backward.default, arguments)
        _, sums = operators.batch_norm_backward(*arguments[:-1], True)
        arguments = (v, None, grad, input, weight, bias, statistics, sums, training, False, need_input)
        check(operators.batch_norm_double_backward.default, arguments)


def test_bad_tensors_are_refused_by_name() -> None:
    operators = torch.ops.pal_fast
    input = torch.randn(3, 4, 5, 5)
    with pytest.raises(RuntimeError, match="weight must have shape"):
        operators.batch_norm(input, torch.ones(3), None, torch.ones(2, 4), True, False)
    with pytest.raises(RuntimeError, match="statistics must be of dtype"):
        operators.batch_norm(input, None, None, torch.ones(2, 4).double(), True, False)
    with pytest.raises(RuntimeError, match="grad must have the shape of input"):
        operators.batch_norm_backward(input[:, :, :4], input, None, None, torch.ones(2, 4), True, False, True, True)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("of_input", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_another_memory_format_are_accepted(of_input: torch.memory_format, device: str) -> None:
    """A compiled graph may pass such gradients, as the strides traced may differ from those at run time."""
    operators = torch.ops.pal_fast
    other = torch.channels_last if of_input == torch.contiguous_format else torch.contiguous_format
    input, grad, second = (torch.randn(3, 4, 5, 6, device=device).to(memory_format=of_input) for _ in range(3))
    statistics = operators.batch_norm_statistics(input, None, None, True, 0.1, 1e-5)
    tail = (input, None, None, statistics)
    same = operators.batch_norm_backward(grad, *tail, True, True, True, True)
    moved = operators.batch_norm_backward(grad.contiguous(memory_format=other), *tail, True, True, True, True)
    again = operators.batch_norm_double_backward(second, None, grad, *tail, same[1], True, True, True)
    grad, second = (tensor.contiguous(memory_format=other) for tensor in (grad, second))
    moved += operators.batch_norm_double_backward(second, None, grad, *tail, same[1], True, True, True)
    for one, two in zip((*same, *again), moved, strict=True):
        assert torch.equal(one, two)
        assert one.stride() == two.stride()

"""pal_fast.nn.attention against PyTorch's own: values, both derivatives, and what it leaves to PyTorch."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from support.attention import DOUBLE, given
from support.compare import relative_error
from support.networks import by_math, derivatives_of
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import scaled_dot_product_attention

from pal_fast.nn import attention_matrices, attention_operators
from pal_fast.nn import flash_attention as flash
from pal_fast.nn.attention import attention
from pal_fast.nn.attention_matrices import Matrices
from pal_fast.nn.flash_attention import flash_attention

#: query, key, value: as many queries as keys, another number, other features of the value, no heads.
SHAPES = {
    "self": ((2, 3, 5, 4), (2, 3, 5, 4), (2, 3, 5, 4)),
    "cross": ((2, 1, 3, 4), (2, 1, 6, 4), (2, 1, 6, 2)),
    "three dimensions": ((3, 4, 2), (3, 4, 2), (3, 4, 2)),
    "one key": ((2, 2, 3, 4), (2, 2, 1, 4), (2, 2, 1, 4)),
}


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_gradcheck_and_gradgradcheck(shapes: tuple[tuple[int, ...], ...], scale: float | None) -> None:
    def call(*tensors: Tensor) -> Tensor:
        return attention(*tensors, scale=scale)

    tensors = given(*shapes)
    torch.testing.assert_close(call(*tensors), scaled_dot_product_attention(*tensors, scale=scale))
    assert gradcheck(call, tensors)
    assert gradgradcheck(call, tensors)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 4, 5), (3, 1, 5), (4, 5), (1, 5)], ids=str)
def test_a_learned_mask_is_differentiated_twice(shape: tuple[int, ...]) -> None:
    tensors = given((2, 3, 4, 2), (2, 3, 5, 2), (2, 3, 5, 2), shape)
    torch.testing.assert_close(attention(*tensors), scaled_dot_product_attention(*tensors))
    assert gradcheck(attention, tensors)
    assert gradgradcheck(attention, tensors)


def test_a_boolean_mask_excludes_keys_and_fully_masked_rows_are_zero() -> None:
    tensors, mask = given(*SHAPES["self"]), torch.rand(2, 1, 5, 5) < 0.6
    mask[:, :, 0], mask[:, :, 1] = False, True
    output = attention(*tensors, mask)
    torch.testing.assert_close(output, scaled_dot_product_attention(*tensors, mask))
    assert not output[:, :, 0].any()
    assert gradgradcheck(lambda q, k, v: attention(q, k, v, mask), tensors)


@pytest.mark.parametrize("keys", [5, 3])
def test_flash_attention_is_differentiated_twice(keys: int) -> None:
    """Runs the CPU's flash attention kernel, which only this test uses; on a GPU its CUDA counterpart runs."""

    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return flash_attention(query, key, value, Matrices.of(query, key, 0.4))

    tensors = given((2, 3, 5, 4), (2, 3, keys, 4), (2, 3, keys, 4))
    torch.testing.assert_close(call(*tensors), scaled_dot_product_attention(*tensors, scale=0.4))
    assert gradcheck(call, tensors)
    assert gradgradcheck(call, tensors)
    (first,) = torch.autograd.grad(call(*tensors).pow(3).sum(), tensors[0], create_graph=True)
    (second,) = torch.autograd.grad(first.pow(3).sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gpu_operators_are_called_with_valid_signatures_and_shapes(dtype: torch.dtype) -> None:
    """The meta device checks their signatures and shapes; only a GPU can check their values."""
    leaves = [torch.randn(2, 3, count, 16, dtype=dtype, device="meta", requires_grad=True) for count in (9, 7, 7)]
    matrices = Matrices(attention_operators, torch.float32, 7, 0.25, torch.Size((2, 3)))
    output = flash_attention(*leaves, matrices)
    first = torch.autograd.grad(output.float().sum(), leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.float().square().sum() for g in first), leaves)
    assert output.shape == leaves[0].shape
    for found in (first, second):
        assert [(g.shape, g.dtype) for g in found] == [(leaf.shape, dtype) for leaf in leaves]


@pytest.mark.parametrize("padding", [0, 8])
def test_float16_means_over_many_keys_do_not_overflow(padding: int) -> None:
    """The largest finite float16 is 65504."""
    tensor = torch.full((2, 200, 3), 1000.0, dtype=torch.float16)
    matrices = Matrices(attention_operators, torch.float16, 200, 1.0, torch.Size((2,)))
    padded = nn.functional.pad(tensor, (0, 0, 0, padding))
    assert matrices.centred(padded)[:, :200].abs().max() <= 1


def test_an_operation_that_the_device_cannot_do_raises_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU cannot multiply 16-bit matrices into float32, and its bfloat16 flash attention is not used; the probe for
    it runs here all the same, with a right and then a wrong backward."""
    monkeypatch.setattr(attention_matrices, "_found", {})
    cpu = torch.device("cpu")
    with pytest.warns(
        UserWarning, match="does not support torch.bfloat16 matrix products with a float32 result .*slower"
    ):
        assert not attention_matrices._multiplies_into_float32(cpu, torch.bfloat16)
    right = flash._backward
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not attention_matrices._multiplies_into_float32(cpu, torch.bfloat16)
        assert flash._tried_out(cpu, torch.bfloat16, 8)

    def wrong(*args: Any) -> tuple[Tensor, ...]:
        d_query, *rest = right(*args)
        return d_query * 1.1, *rest

    monkeypatch.setattr(flash, "_backward", wrong)
    with pytest.warns(UserWarning, match="a relative error of 0.1 in torch.bfloat16 with 16 features"):
        assert not flash._tried_out(cpu, torch.bfloat16, 16)


def test_flash_attention_keeps_no_matrix_of_queries_and_keys() -> None:
    query, key, value = given((1, 1, 32, 2), (1, 1, 32, 2), (1, 1, 32, 2), dtype=torch.float32)
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = flash_attention(query, key, value, Matrices.of(query, key, 0.5))
        torch.autograd.grad(output.sum(), query, create_graph=True)
    assert kept
    assert max(kept) == 64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_attention_is_as_accurate_as_pytorchs(dtype: torch.dtype) -> None:
    tensors = given((2, 3, 17, 8), (2, 3, 17, 8), (2, 3, 17, 8), dtype=dtype)
    judge = derivatives_of(by_math, [tensor.double() for tensor in tensors])
    errors = []
    for call in (attention, by_math):
        got = derivatives_of(call, tensors)
        assert all(value.dtype == dtype for value in got)
        errors.append([relative_error(value, wanted) for value, wanted in zip(got, judge, strict=True)])
    assert all(own <= 3 * other + 1e-3 for own, other in zip(*errors, strict=True)), errors


def test_second_derivatives_with_a_detached_value_and_the_gradient_of_the_query_only() -> None:
    query, key, value = given(*SHAPES["cross"])
    results = []
    for call in (attention, by_math):
        (g,) = torch.autograd.grad(call(query * 1, key, value.detach()).pow(3).sum(), query, create_graph=True)
        results.append(torch.autograd.grad(g.square().sum(), (query, key)))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    "options",
    [{"dropout_p": 1.0}, {"is_causal": True}, {"scale": 0.0}, {"enable_gqa": True}],
    ids=lambda options: next(iter(options)),
)
def test_unsupported_options_fall_back_to_pytorch(options: dict[str, Any]) -> None:
    tensors = given(*SHAPES["self"])
    output = attention(*tensors, **options)
    assert "ScaledDotProduct" in output.grad_fn.name() or "_Attention" not in _names(output.grad_fn)
    torch.testing.assert_close(output, scaled_dot_product_attention(*tensors, **options))


def _names(node: Any) -> str:
    return " ".join([node.name(), *(_names(child) for child, _ in node.next_functions if child is not None)])


def test_passes_without_gradients_and_empty_batches_work() -> None:
    with torch.no_grad():
        assert not attention(*given(*SHAPES["self"])).requires_grad
    assert attention(*given((0, 2, 3, 4), (0, 2, 3, 4), (0, 2, 3, 4))).shape == (0, 2, 3, 4)


def test_autocast_casts_as_for_pytorchs_attention() -> None:
    tensors = given(*SHAPES["self"], dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        own, theirs = attention(*tensors), scaled_dot_product_attention(*tensors)
    assert own.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(own, theirs, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("kind", ["", "masked", "flash attention"])
@pytest.mark.parametrize("given_in", [torch.float32, torch.bfloat16], ids=str)
def test_a_backward_may_run_under_autocast(kind: str, given_in: torch.dtype) -> None:
    tensors = given(*SHAPES["self"], dtype=given_in)
    mask = torch.zeros(5, 5) if kind == "masked" else None

    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if kind == "flash attention":
            return flash_attention(query, key, value, Matrices.of(query, key, 0.5))
        return attention(query, key, value, mask, scale=0.5)

    results = []
    for inside in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            output = call(*tensors).float()
            if inside:
                results.append(second_derivatives(output, tensors))
        if not inside:
            results.append(second_derivatives(output, tensors))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0.05 * wanted.abs().max().item())


def second_derivatives(output: Tensor, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    first = torch.autograd.grad(output.square().sum(), tensors, create_graph=True)
    return torch.autograd.grad(sum(g.float().square().sum() for g in first), tensors)


def test_arguments_that_pytorch_refuses_are_refused() -> None:
    query, key, value = given(*SHAPES["self"], dtype=torch.float32)
    for arguments in (
        (query, key.double(), value),
        (query, key, value, torch.zeros(5, 5, dtype=DOUBLE)),
        (query, key, value, torch.zeros(5, 5, dtype=torch.int64)),
        (query, key[..., :3], value),
    ):
        with pytest.raises(RuntimeError):
            scaled_dot_product_attention(*arguments)
        with pytest.raises(RuntimeError):
            attention(*arguments)


def test_a_third_derivative_raises() -> None:
    tensors = given(*SHAPES["self"])
    (first,) = torch.autograd.grad(attention(*tensors).pow(3).sum(), tensors[0], create_graph=True)
    (second,) = torch.autograd.grad(first.pow(3).sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.sum().backward()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("keys", [7, 64, 197])
def test_a_gpu_agrees_with_the_cpu(keys: int, masked: bool, dtype: torch.dtype) -> None:
    shapes = [(1, 2, 9, 8), (1, 2, keys, 8), (1, 2, keys, 4), (1, 2, 1, keys)]
    tensors = given(*shapes[: 4 if masked else 3], dtype=dtype)
    judge = derivatives_of(by_math, [tensor.double() for tensor in tensors])
    bound = {DOUBLE: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}[dtype]
    for got, wanted in zip(derivatives_of(attention, [tensor.cuda() for tensor in tensors]), judge, strict=True):
        assert got.dtype == dtype
        assert relative_error(got.cpu(), wanted) <= bound

"""PyTorch's flash attention, with the second derivative of `pal_fast.nn.attention`.

Forward and backward store no query-key matrix; the second derivative recomputes it. The operators behind them are
private to PyTorch, so on a GPU they are tested once per process for each device, dtype and number of features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pal_fast.nn.attention_matrices import Matrices, tried_out, without_autocast
from pal_fast.nn.needed_gradients import inner
from pal_fast.warn import warn

aten: Any = torch.ops.aten


def flash_attention(query: Tensor, key: Tensor, value: Tensor, matrices: Matrices) -> Tensor:
    """softmax(scale q k^T) v of query (B, heads, N, D), key and value (B, heads, M, D), which must pass `serves`."""
    output: Tensor = _Flash.apply(inner(query), inner(key), inner(value), matrices)
    return output


def serves(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether PyTorch has such a kernel for these inputs and it is faster: half types, on a GPU."""
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    if query.dim() != 4 or not query.dtype == key.dtype == value.dtype or query.shape[-1] != value.shape[-1]:
        return False
    if any(t.stride(-1) != 1 for t in (query, key, value)):
        return False
    fits = query.shape[-1] % 8 == 0 and query.shape[-1] <= 256
    return fits and _tried_out(query.device, query.dtype, query.shape[-1])


def _forward(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Sequence[Tensor | None]:
    """The output, followed by what else `_backward` needs."""
    if query.device.type == "cpu":
        output, sums = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, False, scale=scale)
        return output, sums
    found = aten._scaled_dot_product_flash_attention(query, key, value, 0.0, False, False, scale=scale)
    output, sums, starts, key_starts, _, _, seed, offset, _ = found
    return output, sums, starts, key_starts, seed, offset


def _backward(
    d_output: Tensor, query: Tensor, key: Tensor, value: Tensor, found: Sequence[Tensor | None], scale: float
) -> tuple[Tensor, ...]:
    """The gradients of query, key and value."""
    gradients: tuple[Tensor, ...]
    if d_output.stride(-1) != 1:
        d_output = d_output.contiguous()
    if query.device.type == "cpu":
        backward = aten._scaled_dot_product_flash_attention_for_cpu_backward
        gradients = backward(d_output, query, key, value, *found, 0.0, False, scale=scale)
        return gradients
    backward = aten._scaled_dot_product_flash_attention_backward
    *found, seed, offset = found
    lengths = query.shape[2], key.shape[2]
    gradients = backward(d_output, query, key, value, *found, *lengths, 0.0, False, seed, offset, scale=scale)
    return gradients


def _tried_out(device: torch.device, dtype: torch.dtype, features: int) -> bool:
    """Whether the operators give correct results on this device, in this release."""

    def trial() -> bool:
        generator = torch.Generator("cpu").manual_seed(0)
        exact = [torch.randn(1, 2, 9, features, generator=generator, device="cpu").to(dtype) for _ in range(4)]
        scale = features**-0.5
        q, k, v, d_output = (tensor.to(device) for tensor in exact)
        found = _forward(q, k, v, scale)
        output, *_ = found
        assert output is not None
        got = [output, *_backward(d_output, q, k, v, found, scale)]
        with torch.enable_grad():
            leaves = [tensor.double().requires_grad_() for tensor in exact[:3]]
            judge = (leaves[0] @ leaves[1].transpose(-1, -2) * scale).softmax(-1) @ leaves[2]
            wanted = [judge.detach(), *torch.autograd.grad(judge, leaves, exact[3].double())]
        errors = [(a.double().cpu() - b).norm() / b.norm() for a, b in zip(got, wanted, strict=True)]
        error = float(torch.stack(errors).max())
        if not error < 0.03:
            warn(
                f"flash attention of torch {torch.__version__} on {device} has a relative error of {error:.2g} in "
                f"{dtype} with {features} features per head: layers prepared by prepare_head do not use it"
            )
        return error < 0.03

    return tried_out(("flash attention", device, dtype, features), trial)


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, matrices: Matrices) -> Tensor:
        found = _forward(query, key, value, matrices.scale)
        ctx.save_for_backward(query, key, value, *found)
        ctx.matrices = matrices
        output = found[0]
        assert output is not None
        return output

    @staticmethod
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *found = ctx.saved_tensors
        found = [None if tensor is None else tensor.detach() for tensor in found]
        return *_FlashBackward.apply(d_output, query, key, value, found, ctx.matrices), None


class _FlashBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        d_output: Tensor,  # (B, heads, N, D)
        query: Tensor,
        key: Tensor,
        value: Tensor,
        found: Sequence[Tensor | None],
        matrices: Matrices,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(d_output, query, key, value)
        ctx.matrices = matrices
        ctx.set_materialize_grads(False)
        return _backward(d_output, query, key, value, found, matrices.scale)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(grad is None for grad in grads):
            return (None,) * 6
        tensors = ctx.saved_tensors
        matrices: Matrices = ctx.matrices
        shapes = (matrices.flat, matrices.flat, matrices.padded, matrices.padded)
        d_output, q, k, v = (shape(tensor) for shape, tensor in zip(shapes, tensors, strict=True))
        of = (None if grad is None else shape(grad) for shape, grad in zip(shapes[1:], grads, strict=True))
        *found, _ = matrices.double_backward(d_output, q, k, v, matrices.weights(q, k), *of)
        return (
            *(
                gradient[:, : tensor.shape[2]].reshape(tensor.shape).to(tensor.dtype)
                for gradient, tensor in zip(found, tensors, strict=True)
            ),
            None,
            None,
        )

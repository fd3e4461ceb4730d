"""`scaled_dot_product_attention` with a second derivative that costs little more than its matrix products.

PyTorch's fused kernels have none, and its MATH kernel computes half-precision attention in float32, at a fraction of
the speed of the matrix products, with a hundred operators in the second derivative. With U, W, Z and N the gradients of
dq, dk, dv and dM, and c(y) = P (y - sum of P y over a row), the derivative of a softmax times y:

    S = s q k^T + M, P = softmax(S), o = P v         scale s, mask M
    dP = do v^T, dS = c(dP)                          the backward, do the gradient of o
    dq = s dS k, dk = s dS^T q, dv = P^T do, dM = dS
    G = s (U k^T + q W^T) + N                        second derivative: the gradient of dS
    T = c(G)                                         the gradient of dP
    R = c(do Z^T + G (dP - sum of P dP) - dP (sum of P G))      the gradient of S
    of do: P Z + T v, of q: s (R k + dS W), of k: s (R^T q + dS^T U), of v: T^T do, of M: R

A term that is constant over keys has no effect in dP, do Z^T and G, nor in products with the rows of dS, T and R, which
sum to zero. In half types v, Z, k and W are therefore centred over keys there, to reduce rounding: in the second
derivative of a bfloat16 layer dP, do Z^T and G are in bfloat16. P, dS, T and R are rounded to the half type, as in
PyTorch's fused kernels where these have them; S is in float32. If PyTorch's flash attention applies, it computes the
forward and the backward, and P is recomputed (`flash_attention`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pal_fast.autocast import cast, outside_autocast
from pal_fast.nn.attention_matrices import Matrices, wide_product, without_autocast
from pal_fast.nn.flash_attention import flash_attention, serves
from pal_fast.nn.needed_gradients import computed_now, inner


def attention(
    query: Tensor,  # (..., N, D)
    key: Tensor,  # (..., M, D)
    value: Tensor,  # (..., M, E)
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """As `torch.nn.functional.scaled_dot_product_attention`, which is the fallback without gradients, with dropout, for
    causal or grouped-query attention, and for nested, sharded or empty tensors."""
    if not torch.is_grad_enabled() or dropout_p or is_causal or enable_gqa or scale == 0:
        computes = False
    else:
        query, key, value, attn_mask = (cast(t) for t in (query, key, value, attn_mask))
        computes = _computes(query, key, value, attn_mask)
    if not computes:
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    with outside_autocast(query):
        return _attention(query, key, value, attn_mask, 1 / math.sqrt(query.shape[-1]) if scale is None else scale)


def _computes(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether this implementation applies. False for invalid inputs, so that PyTorch raises its own error."""
    tensors = (query, key, value) if mask is None else (query, key, value, mask)
    return (
        all(type(t) in (Tensor, torch.nn.Parameter) for t in tensors)
        and query.dim() > 2
        and query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
        and query.shape[-1] == key.shape[-1]
        and key.shape[-2] == value.shape[-2]
        and query.device == key.device == value.device
        and query.is_floating_point()
        and query.dtype == key.dtype == value.dtype
        and all(t.numel() for t in tensors)
        and any(t.requires_grad for t in tensors)
        and (mask is None or (mask.dtype in (torch.bool, query.dtype) and mask.dim() <= query.dim()))
    )


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    matrices = Matrices.of(query, key, scale)
    if mask is None and serves(query, key, value):
        return flash_attention(query, key, value, matrices)
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill_(mask.logical_not(), -math.inf)
    q, k, v = matrices.flat(query), matrices.padded(key), matrices.padded(value)
    output: Tensor = _Attention.apply(inner(q), inner(k), inner(v), inner(mask), matrices)
    return output.view(*query.shape[:-1], value.shape[-1]).to(query.dtype)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,  # (R, N, D)
        k: Tensor,  # (R, M, D), M the keys plus zero padding
        v: Tensor,  # (R, M, E)
        mask: Tensor | None,  # broadcastable to (..., N, keys)
        matrices: Matrices,
    ) -> Tensor:
        weights = matrices.weights(q, k, mask)
        ctx.save_for_backward(q, k, v, mask, weights)
        ctx.matrices = matrices
        return torch.bmm(weights, v)

    @staticmethod
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        wanted = tuple(tensor is not None and computed_now(ctx, i) for i, tensor in enumerate(tensors[:4]))
        return *_AttentionBackward.apply(d_output, *tensors, ctx.matrices, wanted), None


class _AttentionBackward(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(
        ctx: Any,
        d_output: Tensor,  # (R, N, E)
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        weights: Tensor,  # (R, N, M)
        matrices: Matrices,
        wanted: tuple[bool, bool, bool, bool],
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(d_output, q, k, v, mask, weights)
        ctx.matrices = matrices
        ctx.set_materialize_grads(False)
        d_q = d_k = d_v = d_mask = None
        if wanted[0] or wanted[1] or wanted[3]:
            d_weights = wide_product(d_output, matrices.centred(v).transpose(1, 2))
            d_scores = matrices.rows.attention_backward(weights, d_weights, matrices.scale)
            d_q = torch.bmm(d_scores, matrices.centred(k)) if wanted[0] else None
            d_k = torch.bmm(d_scores.transpose(1, 2), q) if wanted[1] else None
            d_mask = matrices.of_mask(d_scores, mask) if mask is not None and wanted[3] else None
        if wanted[2]:
            d_v = torch.bmm(weights.transpose(1, 2), d_output)
        return d_q, d_k, d_v, d_mask

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(grad is None for grad in grads):
            return (None,) * 8
        d_output, q, k, v, mask, weights = ctx.saved_tensors
        *found, of_s = ctx.matrices.double_backward(d_output, q, k, v, weights, *grads)
        of_mask = ctx.matrices.of_mask(of_s, mask) if mask is not None and ctx.needs_input_grad[4] else None
        return *found, of_mask, None, None, None

"""`scaled_dot_product_attention` with a second derivative that costs little more than its products of matrices.

PyTorch's fused kernels have none, and its MATH kernel computes a half type's attention in float32, at a fraction of the
speed of its matrices, with a hundred operators in the second derivative. With U, W, Z and N the gradients of dq, dk, dv
and dM, and c(y) = P (y - sum of P y over a row), the derivative of a softmax times y:

    S = s q k^T + M, P = softmax(S), o = P v         scale s, mask M
    dP = do v^T, dS = c(dP)                          the backward, do the gradient of o
    dq = s dS k, dk = s dS^T q, dv = P^T do, dM = dS
    G = s (U k^T + q W^T) + N                        differentiated: the gradient of dS
    T = c(G)                                         that of dP
    R = c(do Z^T + G (dP - sum of P dP) - dP (sum of P G))      that of S
    of do: P Z + T v, of q: s (R k + dS W), of k: s (R^T q + dS^T U), of v: T^T do, of M: R

What is the same for all keys does not count in dP, do Z^T and G, nor in products with the rows of dS, T and R, which
sum to zero. There v, Z, k and W of half types are taken less their means over keys, so that rounding loses little: in
the second derivative dP, do Z^T and G are in bfloat16 where the layer is. P, dS, T and R are rounded to the half type,
as PyTorch's fused kernels do with those that they have; S is in float32. Where PyTorch's flash attention serves, the
forward and the backward are its own, and P is made anew (`flash_attention`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pal_fast.nn.attention_matrices import Matrices, wide_product
from pal_fast.nn.flash_attention import flash_attention, serves
from pal_fast.nn.wanted import computed_now, inner


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
    """As `torch.nn.functional.scaled_dot_product_attention`, which it calls where it has nothing to offer: where no
    gradient is wanted, with dropout, causal or grouped, on nested, sharded or empty tensors."""
    if scale is None and query.dim() and query.shape[-1]:
        scale = 1 / math.sqrt(query.shape[-1])
    types = (query, key, value) if attn_mask is None else (query, key, value, attn_mask)
    if (
        dropout_p
        or is_causal
        or enable_gqa
        or not scale
        or not torch.is_grad_enabled()
        or not any(t.requires_grad for t in types)
        or any(type(t) not in (Tensor, torch.nn.Parameter) for t in types)
        or query.dim() < 3
        or not query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
        or not query.device == key.device == value.device
        or not all(t.numel() for t in types)
    ):
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    device = query.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        query, key, value = (t if t.dtype == torch.float64 else t.to(dtype) for t in (query, key, value))
    with torch.autocast(device, enabled=False):
        return _attention(query, key, value, attn_mask, scale)


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
        k: Tensor,  # (R, M, D), M the keys and padding of zeros
        v: Tensor,  # (R, M, E)
        mask: Tensor | None,  # is broadcast to (..., N, keys)
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
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        d_output, q, k, v, mask, weights = ctx.saved_tensors
        *found, of_s = ctx.matrices.double_backward(d_output, q, k, v, weights, *grads)
        of_mask = ctx.matrices.of_mask(of_s, mask) if mask is not None and ctx.needs_input_grad[4] else None
        return *found, of_mask, None, None, None

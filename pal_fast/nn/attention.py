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

Matrices of half types are multiplied into float32, and P, dS, T and R are rounded to the half type, as the fused
kernels do with those that they have.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pal_fast.nn import attention_operators, fused
from pal_fast.nn.wanted import computed_now, inner
from pal_fast.reference import computing_dtype

#: Rows are filled up with zeros to a multiple of it: products of matrices want rows that start at vectors of 16 bytes,
#: and Triton reads rows in whole vectors whose length is a multiple of 16.
_COLUMNS = 16


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
    dtype, keys, device = query.dtype, key.shape[-2], query.device
    kernels = fused.attention_kernels(device, keys)
    if dtype.itemsize == 2 and not (kernels and _multiplies_into_float32(device, dtype)):
        query, key, value = query.float(), key.float(), value.float()
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill_(mask.logical_not(), -math.inf)
    padding = -keys % _COLUMNS if kernels else 0
    q, k, v = (t.reshape(-1, *t.shape[-2:]) for t in (query, key, value))
    if padding:
        k, v = (torch.nn.functional.pad(t, (0, 0, 0, padding)) for t in (k, v))
    given = _Given(kernels or attention_operators, scale, keys, query.shape[:-2])
    output: Tensor = _Attention.apply(inner(q), inner(k), inner(v), inner(mask), given)
    return output.view(*query.shape[:-1], value.shape[-1]).to(dtype)


@lru_cache(maxsize=16)
def _multiplies_into_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products of matrices of `dtype` can leave the device's units in float32."""
    ones = torch.ones(1, 8, 8, dtype=dtype, device=device)
    try:
        found: Tensor = torch.bmm(ones, ones * 0.125, out_dtype=torch.float32)
    except Exception:  # not on this device, or not in this release: whatever it says
        return False
    return found.dtype == torch.float32 and bool((found == 1).all())


def _wide(a: Tensor, b: Tensor) -> Tensor:
    """a b, (R, N, M), in float32 at least."""
    if a.dtype.itemsize == 2:
        product: Tensor = torch.bmm(a, b, out_dtype=torch.float32)
        return product
    return torch.bmm(a, b)


class _Given(NamedTuple):
    """What is no tensor."""

    #: `pal_fast.kernels.attention`, or `attention_operators`, which do the same.
    rows: Any
    scale: float
    #: Of those of k and v; the rest are padding.
    keys: int
    leading: torch.Size

    def unpadded(self, matrix: Tensor) -> Tensor:
        """(*leading, N, keys), a view of `matrix` (R, N, M)."""
        return matrix.view(*self.leading, *matrix.shape[1:])[..., : self.keys]

    def of_mask(self, of_scores: Tensor, mask: Tensor) -> Tensor:
        """The mask's gradient, of that of S times the scale."""
        whole = self.unpadded(of_scores.contiguous())
        return (whole.to(computing_dtype(whole.dtype)) / self.scale).sum_to_size(mask.shape).to(mask.dtype)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,  # (R, N, D)
        k: Tensor,  # (R, M, D), M the keys and padding of zeros
        v: Tensor,  # (R, M, E)
        mask: Tensor | None,  # is broadcast to (*leading, N, keys)
        given: _Given,
    ) -> Tensor:
        scores, scale = _wide(q, k.transpose(1, 2)), given.scale
        if mask is not None:
            given.unpadded(scores.mul_(scale)).add_(mask)
            scale = 1.0
        weights = given.rows.attention_weights(scores, scale, given.keys, q.dtype)
        ctx.save_for_backward(q, k, v, mask, weights)
        ctx.given = given
        return torch.bmm(weights, v)

    @staticmethod
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        wanted = tuple(tensor is not None and computed_now(ctx, i) for i, tensor in enumerate(tensors[:4]))
        return *_AttentionBackward.apply(d_output, *tensors, ctx.given, wanted), None


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
        given: _Given,
        wanted: tuple[bool, bool, bool, bool],
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(d_output, q, k, v, mask, weights)
        ctx.given = given
        ctx.set_materialize_grads(False)
        d_q = d_k = d_v = d_mask = None
        if wanted[0] or wanted[1] or wanted[3]:
            d_scores = given.rows.attention_backward(weights, _wide(d_output, v.transpose(1, 2)), given.scale)
            d_q = torch.bmm(d_scores, k) if wanted[0] else None
            d_k = torch.bmm(d_scores.transpose(1, 2), q) if wanted[1] else None
            d_mask = given.of_mask(d_scores, mask) if mask is not None and wanted[3] else None
        if wanted[2]:
            d_v = torch.bmm(weights.transpose(1, 2), d_output)
        return d_q, d_k, d_v, d_mask

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        d_output, q, k, v, mask, weights = ctx.saved_tensors
        given = ctx.given
        of_q, of_k, of_v = (
            torch.zeros_like(of) if grad is None else grad for grad, of in zip(grads[:3], (q, k, v), strict=True)
        )
        # 1. Products over features, two at once: of dP and of what dv adds to the gradient of P; of that of dS.
        both = _wide(d_output, torch.cat([v, of_v], 1).transpose(1, 2))
        u = _wide(torch.cat([of_q, q], 2), torch.cat([k, of_k], 2).transpose(1, 2))
        if grads[3] is not None:
            given.unpadded(u).add_(grads[3], alpha=1 / given.scale)
        # 2. Rows.
        of_d_weights, of_scores = given.rows.attention_double_backward(weights, both, u, given.scale)
        of_s, d_scores = of_scores.split(k.shape[1], 2)
        # 3. Products over keys and queries.
        return (
            torch.bmm(weights, of_v).baddbmm_(of_d_weights, v),
            torch.bmm(of_scores, torch.cat([k, of_k], 1)),
            torch.bmm(of_s.transpose(1, 2), q).baddbmm_(d_scores.transpose(1, 2), of_q),
            torch.bmm(of_d_weights.transpose(1, 2), d_output),
            given.of_mask(of_s, mask) if mask is not None and ctx.needs_input_grad[4] else None,
            None,
            None,
            None,
        )

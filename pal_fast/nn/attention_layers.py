"""Layers whose attention is `pal_fast.nn.attention`'s: `MultiheadAttention`, and the twins of layers that call
`scaled_dot_product_attention` themselves."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pal_fast.nn.attention import attention

#: Names in the code of a forward that calls it: its own, and that of the table through which transformers finds it.
_CALLS = frozenset({"scaled_dot_product_attention", "ALL_ATTENTION_FUNCTIONS"})


class _OwnAttention(TorchFunctionMode):
    """Inside, `scaled_dot_product_attention` is `attention`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            func = attention
        return func(*args, **(kwargs or {}))


def attends(module: nn.Module) -> bool:
    """Whether the forward of the module's type, as written, calls `scaled_dot_product_attention`, and timm's
    `fused_attn` does not keep it from that."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and not _CALLS.isdisjoint(code.co_names) and getattr(module, "fused_attn", True)


_twins: dict[type[nn.Module], type[nn.Module]] = {}


def attention_twin(kind: type[nn.Module]) -> type[nn.Module]:
    """The one subclass of `kind` with the same results, whose attention is differentiated twice at its floor.

    Its objects are copied as they are, and pickled: the other process makes the type anew.
    """

    if kind in _twins:
        return _twins[kind]

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return kind.forward(self, *args, **kwargs)
        with _OwnAttention():
            return kind.forward(self, *args, **kwargs)

    def reduce(self: nn.Module) -> Any:
        return _empty, (kind,), self.__dict__

    members = {"forward": forward, "__reduce__": reduce, "__module__": kind.__module__}
    return _twins.setdefault(kind, type(kind.__name__, (kind,), members))


def _empty(kind: type[nn.Module]) -> nn.Module:
    """An object of the twin of `kind`, whose attributes are still to come."""
    twin = attention_twin(kind)
    module: nn.Module = twin.__new__(twin)
    return module


class MultiheadAttention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention`: same parameters and results, and a second derivative at its floor.

    Args: as `torch.nn.MultiheadAttention`.

    Where the weights are asked for, with dropout, `bias_kv`, `add_zero_attn`, `is_causal` or `key_padding_mask`, and
    under torch.compile it is PyTorch's own. A third derivative raises RuntimeError.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `torch.nn.MultiheadAttention.forward`; shapes (B, N, D) with `batch_first`, else (N, B, D)."""
        if (
            need_weights
            or is_causal
            or key_padding_mask is not None
            or query.dim() != 3
            or torch.compiler.is_compiling()
            or not torch.is_grad_enabled()
            or (self.training and self.dropout)
            or self.bias_k is not None
            or self.add_zero_attn
        ):
            options = key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            return super().forward(query, key, value, *options)
        if attn_mask is not None and attn_mask.dim() == 3:
            attn_mask = attn_mask.view(-1, self.num_heads, *attn_mask.shape[1:])
        q, k, v = (self._heads(t) for t in self._projected(query, key, value))
        output = attention(q, k, v, attn_mask).transpose(1, 2).flatten(2)  # (B, N, D)
        output = nn.functional.linear(output, self.out_proj.weight, self.out_proj.bias)
        return output if self.batch_first else output.transpose(0, 1), None

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> Sequence[Tensor]:
        if self._qkv_same_embed_dim and query is key and key is value:
            return nn.functional.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        weights: Sequence[Tensor] = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        if self._qkv_same_embed_dim:
            weights = self.in_proj_weight.chunk(3)
        biases: Sequence[Tensor | None] = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        given = zip((query, key, value), weights, biases, strict=True)
        return [nn.functional.linear(t, weight, bias) for t, weight, bias in given]

    def _heads(self, projected: Tensor) -> Tensor:
        """(B, heads, N, D / heads)."""
        batch_first = projected if self.batch_first else projected.transpose(0, 1)
        return batch_first.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)

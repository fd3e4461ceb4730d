"""Layers that use `pal_fast.nn.attention`: `MultiheadAttention`, and subclasses ("twins") of layers that call
`scaled_dot_product_attention` themselves."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode

from pal_fast.nn.attention import attention

#: Names in the code of a forward that calls it: the function's own, and the table in which transformers looks it up.
_CALLS = frozenset({"scaled_dot_product_attention", "ALL_ATTENTION_FUNCTIONS"})


class _OwnAttention(TorchFunctionMode):
    """Inside, calls of `scaled_dot_product_attention` go to `attention`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            func = attention
        return func(*args, **(kwargs or {}))


def attends(module: nn.Module) -> bool:
    """Whether the forward defined by the module's class calls `scaled_dot_product_attention`.

    False for timm's `fused_attn=False`, which multiplies explicitly, for a `forward` set on the module itself, for one
    that checkpoints part of itself (whose recomputation would bypass the twin), and for a class created for this module
    alone.
    """
    if isinstance(module, torch.jit.ScriptModule | torch.fx.GraphModule) or "forward" in vars(module):
        return False
    if not getattr(module, "fused_attn", True) or is_parametrized(module):
        return False
    forward = inspect.getattr_static(type(module), "forward", None)
    code = getattr(inspect.unwrap(forward) if callable(forward) else None, "__code__", None)
    return code is not None and not _CALLS.isdisjoint(code.co_names) and "checkpoint" not in code.co_names


def _is_plain() -> bool:
    """Whether to use PyTorch's own: under torch.compile and torch.jit.trace, and without gradients."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or not torch.is_grad_enabled()


_twins: dict[type[nn.Module], type[nn.Module] | None] = {}


def attention_twin(kind: type[nn.Module]) -> type[nn.Module] | None:
    """The unique subclass of `kind` with the same results that uses `pal_fast.nn.attention`. None if `kind` does not
    allow such a subclass, because of its `__init_subclass__` or metaclass.

    Its instances are copied and pickled like those of `kind`; another process recreates the type.
    """
    if kind not in _twins:
        try:
            _twins[kind] = _new_twin(kind)
        except Exception:  # the class may raise anything
            _twins[kind] = None
    return _twins[kind]


def _new_twin(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if _is_plain():
            return kind.forward(self, *args, **kwargs)
        with _OwnAttention():
            return kind.forward(self, *args, **kwargs)

    def reduce_ex(self: nn.Module, protocol: Any) -> Any:
        made = kind.__reduce_ex__(self, protocol)
        if isinstance(made, str) or type(self) not in made[1]:
            return made
        function, args, *rest = made
        place = args.index(type(self))
        return _made, (function, kind, args[:place], args[place + 1 :]), *rest

    forward.__signature__ = inspect.signature(kind.forward)  # type: ignore[attr-defined]
    names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    members = {"forward": forward, "__reduce_ex__": reduce_ex, **names}
    return types.new_class(kind.__name__, (kind,), exec_body=lambda space: space.update(members))


def _made(function: Callable[..., Any], kind: type[nn.Module], before: tuple[Any, ...], after: tuple[Any, ...]) -> Any:
    """Unpickles an instance of the twin of `kind`: calls `function` with the twin in the place of the class."""
    return function(*before, attention_twin(kind) or kind, *after)


class MultiheadAttention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention`: same parameters and results, and the derivatives of `pal_fast.nn.attention`.

    Args: as `torch.nn.MultiheadAttention`.

    Falls back to PyTorch's implementation for unbatched input, `need_weights`, dropout, `bias_kv`, `add_zero_attn`,
    `is_causal` or `key_padding_mask`, without gradients, and under torch.compile and torch.jit.trace. A third
    derivative raises RuntimeError.
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
        options = need_weights or is_causal or key_padding_mask is not None or (self.training and self.dropout)
        if options or not self._computes(query, key, value, attn_mask):
            rest = key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            return super().forward(query, key, value, *rest)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = attn_mask.logical_not()  # here True marks positions to ignore
        if attn_mask is not None and attn_mask.dim() == 3:
            attn_mask = attn_mask.unflatten(0, (-1, self.num_heads))
        q, k, v = (self._heads(t) for t in self._projected(query, key, value))
        output = attention(q, k, v, attn_mask).transpose(1, 2).flatten(2)  # (B, N, D)
        output = nn.functional.linear(output, self.out_proj.weight, self.out_proj.bias)
        return output if self.batch_first else output.transpose(0, 1), None

    def _computes(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
        """Whether this implementation applies. False for invalid inputs, so that PyTorch raises its own error."""
        if _is_plain() or self.bias_k is not None or self.add_zero_attn:
            return False
        if query.dim() != 3 or key.shape[:2] != value.shape[:2]:
            return False
        batch, sequence = (0, 1) if self.batch_first else (1, 0)
        if query.shape[batch] != key.shape[batch]:
            return False
        shape = query.shape[sequence], key.shape[sequence]
        shapes = shape, (query.shape[batch] * self.num_heads, *shape)
        return mask is None or (mask.dtype in (torch.bool, query.dtype) and mask.shape in shapes)

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

"""The query-key matrices from which attention's derivatives are computed: their dtype, the implementation of their
row-wise operations, and the second derivative. The formulas are those of `pal_fast.nn.attention`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from pal_fast.autocast import outside_autocast
from pal_fast.messages import first_line
from pal_fast.nn import attention_operators, triton_derivatives
from pal_fast.reference import computing_dtype
from pal_fast.warn import warn

#: Rows are zero-padded to a multiple of this: matrix products require rows aligned to vectors of 16 bytes, and Triton
#: reads rows in whole vectors only if their length is a multiple of 16.
_COLUMNS = 16


class Matrices(NamedTuple):
    """How the matrices of one call are computed. Below, R is samples times heads, M the keys plus padding."""

    #: The row-wise operations: `pal_fast.kernels.attention`, or `attention_operators`, which has the same interface.
    rows: Any
    #: Of q, k, v and P.
    dtype: torch.dtype
    #: The number of rows of k and v that are not padding.
    keys: int
    scale: float
    #: (..., heads); their product is R.
    leading: torch.Size

    @classmethod
    def of(cls, query: Tensor, key: Tensor, scale: float) -> Matrices:
        """For query (..., N, D) and key (..., M, D)."""
        keys, device, dtype = key.shape[-2], query.device, query.dtype
        kernels = triton_derivatives.attention_kernels(device, keys)
        if dtype.itemsize == 2 and not (kernels and _multiplies_into_float32(device, dtype)):
            kernels, dtype = None, torch.float32
        return cls(kernels or attention_operators, dtype, keys, scale, query.shape[:-2])

    def flat(self, tensor: Tensor) -> Tensor:
        """(R, N, D) of (..., N, D)."""
        return tensor.reshape(-1, *tensor.shape[-2:]).to(self.dtype)

    def padded(self, tensor: Tensor) -> Tensor:
        """(R, M, D) of (..., keys, D)."""
        padding = 0 if self.rows is attention_operators else -self.keys % _COLUMNS
        flat = self.flat(tensor)
        return torch.nn.functional.pad(flat, (0, 0, 0, padding)) if padding else flat

    def unpadded(self, matrix: Tensor) -> Tensor:
        """(..., N, keys), a view of `matrix` (R, N, M)."""
        return matrix.view(*self.leading, *matrix.shape[1:])[..., : self.keys]

    def weights(self, q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
        """P (R, N, M) of q (R, N, D) and k (R, M, D)."""
        scores, scale = wide_product(q, k.transpose(1, 2)), self.scale
        if mask is not None:
            self.unpadded(scores.mul_(scale)).add_(mask)
            scale = 1.0
        weights: Tensor = self.rows.attention_weights(scores, scale, self.keys, self.dtype)
        return weights

    def of_mask(self, of_scores: Tensor, mask: Tensor) -> Tensor:
        """The gradient of the mask, given that of S times the scale."""
        whole = self.unpadded(of_scores.contiguous())
        return (whole.to(computing_dtype(whole.dtype)) / self.scale).sum_to_size(mask.shape).to(mask.dtype)

    def centred(self, tensor: Tensor) -> Tensor:
        """`tensor` (R, M, D) minus its mean over keys, which reduces rounding; unchanged unless of a half type. May
        replace `tensor` if a constant added to a row of the product has no effect, or if the rows of the other factor
        sum to zero."""
        if tensor.dtype.itemsize > 2:
            return tensor
        return tensor - tensor.mean(1, keepdim=True).mul_(tensor.shape[1] / self.keys)

    def double_backward(
        self,
        d_output: Tensor,  # (R, N, E)
        q: Tensor,  # (R, N, D)
        k: Tensor,  # (R, M, D)
        v: Tensor,  # (R, M, E)
        weights: Tensor,  # P, (R, N, M)
        of_q: Tensor | None,  # the gradients of dq, dk, dv and dM: U, W, Z and N
        of_k: Tensor | None,
        of_v: Tensor | None,
        of_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The gradients of do, q, k and v, and s R, (R, N, M)."""
        of_q, of_k, of_v = (
            torch.zeros_like(of) if grad is None else grad for grad, of in ((of_q, q), (of_k, k), (of_v, v))
        )
        # 1. Products over features: dP and do Z^T in one; G divided by the scale.
        k, v, of_k = self.centred(k), self.centred(v), self.centred(of_k)
        both = _product(d_output, torch.cat([v, self.centred(of_v)], 1).transpose(1, 2))
        u = _product(torch.cat([of_q, q], 2), torch.cat([k, of_k], 2).transpose(1, 2))
        if of_mask is not None:
            self.unpadded(u).add_(of_mask, alpha=1 / self.scale)
        # 2. Row-wise operations.
        of_d_weights, of_scores = self.rows.attention_double_backward(weights, both, u, self.scale)
        of_s, d_scores = of_scores.split(k.shape[1], 2)
        # 3. Products over keys and queries.
        return (
            torch.bmm(weights, of_v).baddbmm_(of_d_weights, v),
            torch.bmm(of_scores, torch.cat([k, of_k], 1)),
            torch.bmm(of_s.transpose(1, 2), q).baddbmm_(d_scores.transpose(1, 2), of_q),
            torch.bmm(of_d_weights.transpose(1, 2), d_output),
            of_s,
        )


Method = TypeVar("Method", bound=Callable[..., Any])


def without_autocast(method: Method) -> Method:
    """Decorates a forward or backward of an autograd function to run without autocast, which may be on in backward."""

    @functools.wraps(method)
    def outside(ctx: Any, *args: Any) -> Any:
        # Not a saved tensor: in a checkpointed segment these may be unpacked only once.
        tensor = next((arg for arg in args if isinstance(arg, Tensor)), None)
        with nullcontext() if tensor is None else outside_autocast(tensor):
            return method(ctx, *args)

    return cast(Method, outside)


def wide_product(a: Tensor, b: Tensor) -> Tensor:
    """a b, (R, N, M), in at least float32."""
    if a.dtype.itemsize == 2:
        product: Tensor = torch.bmm(a, b, out_dtype=torch.float32)
        return product
    return torch.bmm(a, b)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b, (R, N, M), in the dtype of a and b, except float16, whose products may overflow it: these are in float32."""
    return wide_product(a, b) if a.dtype == torch.float16 else torch.bmm(a, b)


def _multiplies_into_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the device supports matrix products of `dtype` with a float32 result."""

    def trial() -> bool:
        ones = torch.ones(1, 8, 8, dtype=dtype, device=device)
        try:
            found: Tensor = torch.bmm(ones, ones * 0.125, out_dtype=torch.float32)
            problem = "" if found.dtype == torch.float32 and bool((found == 1).all()) else "wrong results"
        except RuntimeError as error:
            problem = first_line(error)
        if problem:
            warn(
                f"torch {torch.__version__} on {device} does not support {dtype} matrix products with a float32 result "
                f"({problem}): attention prepared by prepare_head is computed in float32, which is slower"
            )
        return not problem

    return tried_out(("bmm", device, dtype), trial)


_found: dict[Hashable, bool] = {}


def tried_out(what: Hashable, trial: Callable[[], bool]) -> bool:
    """The result of `trial`, or False if it raised: support varies with the device and the release of PyTorch.

    Cached for the process. While a CUDA graph is captured, which a trial would break, returns False without caching.
    """
    if what not in _found:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return False
        try:
            with torch.no_grad():
                _found[what] = trial()
        except torch.OutOfMemoryError:
            raise
        except Exception:  # another release may raise anything
            _found[what] = False
    return _found[what]

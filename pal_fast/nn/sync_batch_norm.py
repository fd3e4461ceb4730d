"""BatchNorm over the batches of all processes, differentiable any number of times."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pal_fast import _checks


class _AllReduceSum(torch.autograd.Function):
    """The sum over the processes of `group`. Its gradient is the sum of the processes' gradients: the same function."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _all_reduce(gradient, ctx.group), None


def _all_reduce(tensor: Tensor, group: Any) -> Tensor:
    total: Tensor = _AllReduceSum.apply(tensor, group)
    return total


class SyncBatchNorm(_BatchNorm):
    """`torch.nn.SyncBatchNorm` with derivatives of every order, on CPU and GPU.

    Equals BatchNorm on the concatenated batches of all processes, whose sizes may differ. Without a process group, and
    in eval mode, it is plain BatchNorm.

    Args: as `torch.nn.SyncBatchNorm`. Input (B, C, ...).
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> None:
        # Passed to PyTorch only if set: a release without the option then names it in its error.
        options: dict[str, Any] = {} if bias else {"bias": False}
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype, **options
        )
        self.process_group = process_group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        # Never synchronised in eval mode, even without running statistics: a process may evaluate alone.
        if not self.training or not dist.is_available() or not dist.is_initialized():
            return super().forward(input)
        x = input if input.dtype == torch.float64 else input.float()
        dims = (0, *range(2, x.ndim))
        shape = (1, -1, *(1,) * (x.ndim - 2))
        # [C sums, count] in one message. The second message has centred squares, to avoid cancellation.
        count = x.new_full((1,), x.numel() / max(x.shape[1], 1))
        sums = _all_reduce(torch.cat([x.sum(dims), count]), self.process_group)
        total = sums[-1].detach()
        mean = sums[:-1] / total
        centred = x - mean.view(shape)
        variance = _all_reduce(centred.square().sum(dims), self.process_group) / total
        if self.track_running_stats:
            self._update(mean.detach(), variance.detach(), total)
        output = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            output = output * self.weight.view(shape)
        if self.bias is not None:
            output = output + self.bias.view(shape)
        return output.to(input.dtype)

    def _update(self, mean: Tensor, variance: Tensor, total: Tensor) -> None:
        """Updates the running statistics as BatchNorm does, with the unbiased variance."""
        if self.running_mean is None or self.running_var is None:
            return
        factor: float | Tensor = 0.0 if self.momentum is None else self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                factor = 1.0 / self.num_batches_tracked.double()
        with torch.no_grad():
            self.running_mean.add_((mean - self.running_mean) * factor)
            unbiased = variance * (total / (total - 1).clamp_min(1))
            self.running_var.add_((unbiased - self.running_var) * factor)


_CONVERTED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def convert_sync_batchnorm(module: nn.Module, process_group: Any = None) -> nn.Module:
    """Turns every BatchNorm1d, 2d, 3d and SyncBatchNorm of `module` into `pal_fast.nn.SyncBatchNorm`, in place.

    Only the class changes: parameters, buffers, hooks and state_dict are the same objects, so an optimiser or a PALLoss
    constructed before stays valid. Only these exact types are converted. Call it before DistributedDataParallel wraps
    the model and before `prepare_head`, which then leaves these layers alone.

    Returns: `module`.

    Raises: TypeError unless `module` is one.
    """
    _checks.module("module", module)
    for layer in module.modules():
        if type(layer) in _CONVERTED:
            layer.__class__ = SyncBatchNorm
            layer.process_group = process_group
    return module

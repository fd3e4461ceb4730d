"""`torch.nn.BatchNorm1d` and `BatchNorm2d` with a second derivative of two passes instead of some 96 operators."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pal_fast.nn import batch_norm_operators


class FusedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """The forward shared by both classes. Adds no state, so that they differ from PyTorch's only in `__class__`."""

    #: Whether the layer also applies a ReLU, in the same passes. For a network that has none after it; `prepare_head`
    #: does not set it, because a finite difference could not keep such a ReLU on its side.
    fused_relu: bool = False

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        namespace = (
            batch_norm_operators.namespace_on(input.device) if input.is_floating_point() and input.numel() else ""
        )
        if not namespace:
            output = nn.modules.batchnorm._BatchNorm.forward(self, input)
            return torch.relu(output) if self.fused_relu else output
        uses_batch = self.training or self.running_mean is None
        if uses_batch and input.numel() == input.shape[1]:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.size()}")
        updates = self.training and self.track_running_stats
        return batch_norm_operators.batch_norm(
            namespace,
            input,
            self.weight,
            self.bias,
            self.running_mean if not self.training or self.track_running_stats else None,
            self.running_var if not self.training or self.track_running_stats else None,
            training=uses_batch,
            momentum=self._average_factor(updates),
            eps=self.eps,
            relu=self.fused_relu,
        )

    def _average_factor(self, updates: bool) -> float:
        """The weight of the new statistics in the running ones; counts the batch if these are updated."""
        if updates and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # cumulative average
                return 1.0 / float(self.num_batches_tracked)
        return 0.0 if self.momentum is None else self.momentum


class BatchNorm1d(FusedBatchNorm, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` over (B, C) or (B, C, L): same parameters, buffers and results, twice differentiable.

    Args: as `torch.nn.BatchNorm1d`.

    Forward, backward and second derivative are fused operators on CPU and CUDA (compiled or Triton), float16 to
    float64, also under autocast; PyTorch's own are the fallback. A third derivative raises RuntimeError.
    """


class BatchNorm2d(FusedBatchNorm, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` over (B, C, H, W): same parameters, buffers and results, twice differentiable.

    Args: as `torch.nn.BatchNorm2d`.

    Forward, backward and second derivative are fused operators on CPU and CUDA (compiled or Triton), float16 to
    float64, contiguous and channels_last read in place, also under autocast; PyTorch's own are the fallback. A third
    derivative raises RuntimeError.
    """

"""Counterparts of timm's own layers. Import only if timm is installed."""

from __future__ import annotations

from timm.layers import norm_act
from torch import Tensor

from pal_fast.nn.batch_norm import FusedBatchNorm


class BatchNormAct2d(FusedBatchNorm, norm_act.BatchNormAct2d):
    """timm's `BatchNormAct2d`, batch normalisation and an activation in one module: the same results."""

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.act(self.drop(FusedBatchNorm.forward(self, x)))
        return output

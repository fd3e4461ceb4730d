"""Layers whose second derivative is fused: what a training step with an attribution loss spends its time on."""

from pal_fast.nn.batch_norm import BatchNorm1d, BatchNorm2d

__all__ = ["BatchNorm1d", "BatchNorm2d"]

"""Layers with a fused second derivative, on which a training step with an attribution loss spends most of its time."""

from pal_fast.nn.attention_layers import MultiheadAttention
from pal_fast.nn.batch_norm import BatchNorm1d, BatchNorm2d
from pal_fast.nn.conv import Conv2d
from pal_fast.nn.hardsigmoid import Hardsigmoid, replace_hardsigmoid
from pal_fast.nn.head import PreparedHead, prepare_head
from pal_fast.nn.layer_norm import LayerNorm
from pal_fast.nn.smooth_activations import GELU, SiLU
from pal_fast.nn.sync_batch_norm import SyncBatchNorm, convert_sync_batchnorm

__all__ = [
    "GELU",
    "BatchNorm1d",
    "BatchNorm2d",
    "Conv2d",
    "Hardsigmoid",
    "LayerNorm",
    "MultiheadAttention",
    "PreparedHead",
    "SiLU",
    "SyncBatchNorm",
    "convert_sync_batchnorm",
    "prepare_head",
    "replace_hardsigmoid",
]

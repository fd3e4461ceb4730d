"""The Triton kernels: the operators of `pal_fast`, for machines where the extension has no usable CUDA.

Importing this module requires triton; `pal_fast` imports it when the backend is first requested. On CPU tensors
the kernels run in triton's interpreter, provided TRITON_INTERPRET=1 was set before triton was first imported.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.library import Library

NAMESPACE = "pal_fast_triton"

_HEATMAP_OPTIONS = (
    "int height, int width, float image_height, float image_width, float sigma, int combine, int normalize"
)

#: The operators' schemas, identical to those of the compiled extension.
SCHEMAS = {
    "landmark_heatmap": f"(Tensor landmarks, Tensor? visible, Tensor? weights, {_HEATMAP_OPTIONS}) -> Tensor",
    "landmark_heatmap_backward": (
        f"(Tensor grad, Tensor landmarks, Tensor? visible, Tensor? weights, {_HEATMAP_OPTIONS}, "
        "bool need_landmarks, bool need_weights) -> (Tensor, Tensor)"
    ),
    "pal_loss": (
        "(Tensor? activation, Tensor? gradient, Tensor? heatmap, Tensor? landmarks, Tensor? visible, "
        "Tensor? weights, Tensor? sample_weight, float image_height, float image_width, float sigma, int combine, "
        "int normalize, int attribution, bool absolute, int grouping, int channel_count, int score, int scale, "
        "int reduction) -> (Tensor loss, Tensor plane, Tensor coefficients, Tensor factor)"
    ),
    "pal_loss_backward": (
        "(Tensor grad_loss, Tensor? activation, Tensor? gradient, Tensor plane, Tensor coefficients, Tensor factor, "
        "int attribution, bool absolute, int grouping, int channel_count, bool need_activation, bool need_gradient) "
        "-> (Tensor, Tensor)"
    ),
}


def prepare(device: torch.device) -> None:
    """Allocates the buffers that launches on `device` keep. In a CUDA graph's warm-up they would be in its pool."""
    from .launch import prepare_tickets

    if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        prepare_tickets(device)


@lru_cache(maxsize=1)
def register() -> Library:
    """Defines the operators in `torch.ops.pal_fast_triton` for CUDA tensors and, under the interpreter, CPU tensors.

    Raises: ImportError if triton is not installed.
    """
    from .landmark_heatmap import landmark_heatmap, landmark_heatmap_backward
    from .launch import interpreting
    from .pal_loss import pal_loss, pal_loss_backward

    library = Library(NAMESPACE, "DEF")
    for implementation in (landmark_heatmap, landmark_heatmap_backward, pal_loss, pal_loss_backward):
        name = implementation.__name__
        library.define(name + SCHEMAS[name])
        library.impl(name, implementation, "CUDA")
        if interpreting():
            library.impl(name, implementation, "CPU")
    return library

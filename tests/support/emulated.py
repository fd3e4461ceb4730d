"""The CUDA kernels' source, compiled for the CPU and run by the emulator in tests/cuda/emulator.

`operators()` puts the emulated kernels behind the operators' own schemas, in the namespace `pal_fast_emulated`, with
the fakes and the autograd of `pal_fast.ops`: a test calls them as it would call the real ones on a GPU.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from pal_fast import _extension, ops
from pal_fast.constants import REDUCTION
from pal_fast.reference import computing_dtype
from support.toolkit import cuda_headers

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "tests/cuda/emulator"
NAMESPACE = "pal_fast_emulated"

#: For the next call: the seed that shuffles blocks and threads, the number of multiprocessors to plan for, and
#: whether to plan for matrix products by warpgroups.
machine = {"seed": 0, "processors": 2, "warpgroups": 0}
#: Whether warpgroups drew the last heatmap.
planned = {"warpgroups": False}
#: The number of kernels that each operator launched in its last call.
launches: dict[str, int] = {}


@cache
def module(name: str, directory: str) -> ModuleType:
    """Compiles tests/cuda/emulator/`name`.cpp into a Python module; skips the test where that cannot be done."""
    from torch.utils.cpp_extension import load

    headers = cuda_headers()
    if headers is None or shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler and CUDA's headers (cuda_fp16.h)")
    pytest.importorskip("ninja")
    build = Path(directory) / name
    build.mkdir(parents=True, exist_ok=True)
    return load(
        f"pal_fast_emulated_{name}",
        [str(SOURCES / f"{name}.cpp")],
        extra_cflags=["-std=c++20", "-O1", "-Wno-unknown-pragmas", f"-isystem{headers}"],
        extra_include_paths=[str(ROOT / "csrc"), str(SOURCES)],
        build_directory=str(build),
        with_cuda=False,
    )


def poisoned(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised output: filled with NaN, or with a meaningless integer."""
    dtype = dtype or like.dtype
    return torch.full(shape, float("nan") if dtype.is_floating_point else -(10**9), dtype=dtype)


@lru_cache(maxsize=1)
def operators(directory: str) -> str:
    """Defines the emulated operators and returns their namespace."""
    reason = _extension.load()
    assert not reason, reason
    from support import emulated_batch_norm

    implementations = _heatmap_operators(directory) | _loss_operators(directory)
    implementations |= emulated_batch_norm.operators(directory)
    library = torch.library.Library(NAMESPACE, "DEF")
    for name, implementation in implementations.items():
        schema = str(getattr(torch.ops.pal_fast, name).default._schema).removeprefix("pal_fast::")
        library.define(schema)
        library.impl(name, implementation, "CPU")
    operators.library = library  # type: ignore[attr-defined]
    ops.register(NAMESPACE)
    return NAMESPACE


def _heatmap_operators(directory: str) -> dict[str, Any]:
    kernels = module("landmark_heatmap", directory)

    def device() -> tuple[int, bool]:
        return machine["processors"], bool(machine["warpgroups"])

    def workspace(landmarks: Tensor, height: int, width: int, options: Sequence[Any]) -> tuple[int, bool, bool, bool]:
        sizes = (*landmarks.shape[:2], str(landmarks.dtype), height, width)
        return kernels.workspace(*sizes, *options[-2:], *device())  # type: ignore[no-any-return]

    def landmark_heatmap(
        landmarks: Tensor, visible: Any, weights: Any, height: int, width: int, *options: Any
    ) -> Tensor:
        batch = landmarks.shape[0]
        tiles, divides, _, by_warpgroups = workspace(landmarks, height, width, options)
        planned["warpgroups"] = by_warpgroups
        heatmap = poisoned(landmarks, (batch, height, width))
        if batch == 0:
            return heatmap
        tensors = {"landmarks": landmarks, "visible": visible, "weights": weights, "heatmap": heatmap}
        if divides:
            tensors["divisors"] = poisoned(landmarks, (batch, tiles), torch.float64)
            tensors["tickets"] = torch.zeros(batch, dtype=torch.int32)
        launches["landmark_heatmap"] = kernels.run(
            tensors, str(landmarks.dtype), height, width, *options, *device(), False, machine["seed"]
        )
        assert not divides or not tensors["tickets"].any(), "the tickets are not back at zero"
        return heatmap

    def landmark_heatmap_backward(
        grad: Tensor, landmarks: Tensor, visible: Any, weights: Any, height: int, width: int, *rest: Any
    ) -> tuple[Tensor, Tensor]:
        *options, need_landmarks, need_weights = rest
        _, _, needs_raw, _ = workspace(landmarks, height, width, options)
        d_landmarks = poisoned(landmarks, tuple(landmarks.shape) if need_landmarks else (0,))
        d_weights = poisoned(landmarks, tuple(landmarks.shape[:2]) if need_weights else (0,))
        if landmarks.numel() == 0:
            return d_landmarks, d_weights
        tensors = {"landmarks": landmarks, "visible": visible, "weights": weights, "grad": grad}
        tensors |= {"d_landmarks": d_landmarks, "d_weights": d_weights}
        if needs_raw:
            tensors["raw"] = poisoned(grad, tuple(grad.shape))
            tensors["winner"] = poisoned(grad, tuple(grad.shape), torch.int32)
        launches["landmark_heatmap_backward"] = kernels.run(
            tensors, str(landmarks.dtype), height, width, *options, *device(), True, machine["seed"]
        )
        return d_landmarks, d_weights

    return {"landmark_heatmap": landmark_heatmap, "landmark_heatmap_backward": landmark_heatmap_backward}


def _layer_shape(layer: Tensor, channel_count: int) -> tuple[int, int, int, int, bool, int]:
    return (*layer.shape, not layer.is_contiguous(), channel_count)  # type: ignore[return-value]


def _loss_operators(directory: str) -> dict[str, Any]:
    kernels = module("pal_loss", directory)

    def pal_loss(
        activation: Any, gradient: Any, heatmap: Any, landmarks: Any, visible: Any, weights: Any, *rest: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        sample_weight, *frame = rest[:6]
        attribution, absolute, grouping, channel_count, score, scale, reduction = rest[6:]
        layer = activation if activation is not None else gradient
        batch, _, height, width = layer.shape
        dtype = computing_dtype(layer.dtype)
        none = REDUCTION[reduction] == "none"
        groups = (0, 1, channel_count)[grouping]
        loss = poisoned(layer, (batch,) if none else (), dtype)
        plane = poisoned(layer, (batch, height, width), dtype)
        coefficients = poisoned(layer, (batch, groups, 3), dtype)
        factor = poisoned(layer, (batch,), dtype)
        if batch == 0:
            return loss.zero_(), plane, coefficients, factor
        shape = _layer_shape(layer, channel_count)
        partial_maps, partial_sums = kernels.workspace(shape, str(layer.dtype), grouping, machine["processors"])
        tickets = torch.zeros(batch + 1, dtype=torch.int32)
        tensors = {"activation": activation, "gradient": gradient, "heatmap": heatmap, "landmarks": landmarks}
        tensors |= {"visible": visible, "weights": weights, "sample_weight": sample_weight}
        tensors |= {"loss": loss, "plane": plane, "coefficients": coefficients, "factor": factor, "tickets": tickets}
        tensors["partial_maps"] = poisoned(layer, (partial_maps,), dtype)
        tensors["partial_sums"] = poisoned(layer, (partial_sums,), torch.float64)
        tensors["scores"] = poisoned(layer, (0 if none else 2 * batch,), torch.float64)
        options = (attribution, absolute, grouping, score, scale, reduction)
        launches["pal_loss"] = kernels.forward(
            tensors, shape, str(layer.dtype), *frame, *options, machine["processors"], machine["seed"]
        )
        assert not tickets.any(), "the tickets are not back at zero"
        return loss, plane, coefficients, factor

    def pal_loss_backward(
        grad_loss: Tensor,
        activation: Any,
        gradient: Any,
        plane: Tensor,
        coefficients: Tensor,
        factor: Tensor,
        *rest: Any,
    ) -> tuple[Tensor, Tensor]:
        attribution, absolute, grouping, channel_count, need_activation, need_gradient = rest
        layer = activation if activation is not None else gradient
        d_activation, d_gradient = (
            torch.full_like(layer, float("nan")) if needed else layer.new_empty(0)
            for needed in (need_activation, need_gradient)
        )
        if layer.shape[0] == 0 or not (need_activation or need_gradient):
            return d_activation, d_gradient
        tensors = {"grad_loss": grad_loss, "activation": activation, "gradient": gradient, "plane": plane}
        tensors |= {"coefficients": coefficients, "factor": factor}
        tensors |= {"d_activation": d_activation, "d_gradient": d_gradient}
        launches["pal_loss_backward"] = kernels.backward(
            tensors,
            grad_loss.stride(0) if grad_loss.dim() else 0,
            _layer_shape(layer, channel_count),
            str(layer.dtype),
            attribution,
            absolute,
            grouping,
            machine["processors"],
            machine["seed"],
        )
        return d_activation, d_gradient

    return {"pal_loss": pal_loss, "pal_loss_backward": pal_loss_backward}

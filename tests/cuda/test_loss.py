"""The loss's CUDA kernels, emulated, against the reference in float64, for every pair of options."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from support import emulated
from support.compare import assert_close
from support.loss_problems import CHOICES, check, make, name_of, same_bits
from support.pairwise import pairwise
from torch import Tensor

CASES = pairwise(
    {
        # Whole vectors or not, one block per sample or several, maps of several tiles and of several chunks.
        "shape": [
            (2, 6, 7, 7),
            (3, 5, 13, 17),
            (2, 1, 7, 7),
            (2, 70, 5, 3),
            (1, 4, 60, 50),
            (2, 3, 51, 43),
            (3, 16, 8, 8),
            (2, 20, 1, 3),
            (1, 2, 80, 64),
        ],
        "dtype": [torch.float32, torch.bfloat16, torch.float16, torch.float64],
        "layout": ["contiguous", "channels_last"],
        "attribution": CHOICES["attribution"],
        "absolute": [True, False],
        "channels": CHOICES["channels"],
        "channel_count": [None, 1, 0.6],
        "score": CHOICES["score"],
        "reduction": CHOICES["reduction"],
        "landmarks": [20, 1, 0, None],
        "trouble": ["none", "some", "sample"],
        "visible": [False, True],
        "weights": [None, "own"],
        "sample_weight": [False, True],
        "combine": CHOICES["combine"],
        "normalize": CHOICES["normalize"],
        "sigma": [6.0, 20.0],
        "needs": ["both", "activation", "gradient"],
    }
)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_loss_and_gradients_agree_with_the_reference_and_repeat_bit_for_bit(
    emulated_backend: str, case: dict[str, Any], seed: int
) -> None:
    problem = make(case, seed)
    first = check(problem, emulated_backend)
    assert emulated.launches == {"pal_loss": 1, "pal_loss_backward": 1}
    emulated.machine["seed"] = (seed + 1) % 2**31
    assert same_bits(first, problem.solve(emulated_backend)), "other bits in another order"


def grid_of(**options: list[Any]) -> list[dict[str, Any]]:
    return [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]


EVERY_KERNEL = grid_of(
    channels=["mean", "all", "each"],
    layout=["contiguous", "channels_last"],
    dtype=[torch.float32, torch.bfloat16, torch.float16, torch.float64],
)


@pytest.mark.parametrize("case", EVERY_KERNEL, ids=name_of)
def test_every_kernel_agrees_for_any_number_of_multiprocessors(
    emulated_backend: str, case: dict[str, Any], seed: int
) -> None:
    for shape in [(3, 24, 14, 14), (1, 300, 7, 7), (9, 9, 5, 5)]:
        problem = make(case | {"shape": shape, "landmarks": 7}, seed)
        for processors in (1, 3, 40):
            emulated.machine["processors"] = processors
            check(problem, emulated_backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("vectors", [True, False], ids=["vectors", "elements"])
def test_teams_of_any_size_agree_and_repeat_bit_for_bit(
    emulated_backend: str, build_directory: str, vectors: bool, dtype: torch.dtype, seed: int
) -> None:
    kernels = emulated.module("pal_loss", build_directory)
    found = set()
    for channels, height, width in [
        (2, 52, 60),  # one channel per tile in float32: eight warps share it
        (3, 48, 50),
        (4, 40, 40),
        (5, 34, 36),
        (7, 28, 28),
        (13, 20, 20),
        (27, 14, 14),
        (52, 10, 10),
        (80, 8, 8),
        (145, 6, 6),
        (300, 4, 4),
    ]:
        shape = (1, channels, height, width) if vectors else (1, channels, height - 1, width - 1)
        found.add(kernels.team_lanes((*shape, False, channels), str(dtype), emulated.machine["processors"]))
        problem = make({"channels": "each", "dtype": dtype, "shape": shape}, seed)
        first = check(problem, emulated_backend)
        emulated.machine["seed"] = (emulated.machine["seed"] + 1) % 2**31
        assert same_bits(first, problem.solve(emulated_backend)), f"other bits in another order, {shape}"
    assert found == {1, 2, 4, 8, 16, 32, 64, 128, 256}


@pytest.mark.parametrize("case", EVERY_KERNEL, ids=name_of)
def test_tensors_not_aligned_to_a_vector_agree(emulated_backend: str, case: dict[str, Any], seed: int) -> None:
    problem = make(case | {"shape": (3, 5, 7, 6)}, seed)
    wanted = check(problem, emulated_backend)
    for name in ("activation", "gradient"):
        tensor = getattr(problem, name)
        memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
        setattr(problem, name, memory[1:].as_strided(tensor.shape, tensor.stride(), 1).copy_(tensor))
        assert getattr(problem, name).data_ptr() % 16 != 0
    loss, gradients = problem.solve(emulated_backend)
    assert_close(loss, wanted[0], case["dtype"])
    for value, judge in zip(gradients, wanted[1], strict=True):
        assert_close(value, judge, case["dtype"])


@pytest.mark.parametrize("factor", [1e-24, 1e-15, 1e-9, 1e9, 1e15])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", ["mean", "all", "each"])
def test_the_loss_is_invariant_to_the_scale_of_the_gradient(
    emulated_backend: str, channels: str, layout: str, factor: float, seed: int
) -> None:
    problem = make({"channels": channels, "layout": layout, "shape": (2, 12, 9, 7)}, seed)
    loss, (d_activation, d_gradient) = problem.solve(emulated_backend)
    assert problem.gradient is not None
    # A power of two, so that only the kernels round.
    scale = 2.0 ** round(math.log2(factor))
    problem.gradient = problem.gradient * scale
    scaled, (d_activation_scaled, d_gradient_scaled) = problem.solve(emulated_backend)
    assert_close(scaled, loss, torch.float32)
    assert_close(d_activation_scaled, d_activation, torch.float32)
    assert_close(d_gradient_scaled * scale, d_gradient, torch.float32)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", ["mean", "all", "each"])
@pytest.mark.parametrize("outlier", [False, True], ids=["plain", "outlier"])
@pytest.mark.parametrize("shape", [(2, 12, 9, 7), (1, 3, 48, 50)], ids=str)
def test_a_mean_much_larger_than_the_spread_costs_no_accuracy(
    emulated_backend: str, channels: str, layout: str, outlier: bool, shape: tuple[int, ...], seed: int
) -> None:
    case = {"channels": channels, "layout": layout, "shape": shape, "attribution": "activation"}
    problem = make(case, seed)
    assert problem.activation is not None
    # "each" rounds every channel's mean to float32 for the backward, which limits the accuracy.
    problem.activation = 1 + (2.0**-5 if channels == "each" else 2.0**-12) * problem.activation
    if outlier:
        problem.activation[:, :, 0, 0] = 0
    check(problem, emulated_backend)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", ["mean", "all", "each"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e-30])
def test_a_flat_attribution_gives_exactly_zero(
    emulated_backend: str, channels: str, layout: str, value: float, seed: int
) -> None:
    problem = make({"channels": channels, "layout": layout, "attribution": "activation", "shape": (2, 9, 14, 14)}, seed)
    assert problem.activation is not None
    problem.activation = torch.full_like(problem.activation, value)
    loss, (gradient,) = problem.solve(emulated_backend)
    assert loss == 0
    assert not gradient.any()


# Channels that are whole vectors in either type, or in float32, or in neither; a vector of the five is a part.
@pytest.mark.parametrize("count", [24, 12, 11])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", ["half", "all", "each"])
def test_unscored_samples_and_free_channels_do_not_change_the_result_even_with_nan(
    emulated_backend: str, channels: str, layout: str, dtype: torch.dtype, count: int, seed: int
) -> None:
    case = {"channels": channels, "layout": layout, "dtype": dtype, "channel_count": 5, "trouble": "sample"}
    case["shape"] = (2, count, 9, 7)
    problem = make(case, seed)
    wanted = check(problem, emulated_backend)
    for tensor in (problem.activation, problem.gradient):
        assert tensor is not None
        tensor[:, 5:] = torch.nan  # free channels
        tensor[0] = torch.nan  # a sample without a landmark
    got = problem.solve(emulated_backend)
    assert same_bits(got, wanted)
    for gradient in got[1]:
        assert not gradient[:, 5:].any()
        assert not gradient[0].any()


@pytest.mark.parametrize("case", EVERY_KERNEL, ids=name_of)
def test_saved_tensors_restored_without_vector_alignment_agree(
    emulated_backend: str, case: dict[str, Any], seed: int
) -> None:
    """As after a saved-tensor hook that packs tensors into one buffer."""
    problem = make(case | {"shape": (3, 8, 8, 8)}, seed)
    wanted = problem.solve(emulated_backend)

    def moved(tensor: Tensor) -> Tensor:
        memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
        return memory[1:].as_strided(tensor.shape, tensor.stride(), 1).copy_(tensor)

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, moved):
        assert same_bits(problem.solve(emulated_backend), wanted)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("channels", ["mean", "all", "each"])
def test_an_empty_batch_launches_no_kernel(emulated_backend: str, channels: str, reduction: str, seed: int) -> None:
    check(make({"channels": channels, "reduction": reduction, "shape": (0, 6, 7, 7)}, seed), emulated_backend)
    assert not emulated.launches


def test_nan_propagates_to_the_loss_of_its_sample_only(emulated_backend: str, seed: int) -> None:
    for channels in ("mean", "all", "each"):
        problem = make({"channels": channels, "reduction": "none"}, seed)
        assert problem.activation is not None
        problem.activation[1, 2, 3, 4] = torch.nan
        loss, _ = problem.solve(emulated_backend)
        assert not loss[0].isnan(), channels
        assert loss[1].isnan(), channels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_no_plan_exceeds_48_kib_of_shared_memory(build_directory: str, dtype: torch.dtype, channels_last: bool) -> None:
    kernels = emulated.module("pal_loss", build_directory)
    assert kernels.most_shared_memory(str(dtype), channels_last) <= 48 * 1024

"""Batch normalisation's CUDA kernels, emulated, against the CPU operators in float64."""

from __future__ import annotations

import pytest
import torch
from support import emulated, emulated_batch_norm
from support.batch_norm_operators import NAMES, inputs, outputs
from torch import Tensor

from pal_fast import dispatch
from pal_fast.nn import batch_norm_operators

BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}

#: (B, C, spatial shape), channels_last, the form that the plan must choose, and whether it takes vectors.
CASES = {
    "planes of whole vectors": ((3, 4, 6, 8), False, "planes", True),
    "large planes": ((2, 4, 40, 28), False, "planes", True),
    "large odd planes": ((2, 3, 37, 31), False, "planes", False),
    "odd planes of odd samples": ((3, 5, 3, 3), False, "planes", False),
    "runs of 7 x 7": ((6, 12, 7, 7), False, "runs", True),
    "runs of 14 x 14, in planes": ((3, 4, 14, 14), False, "planes", True),
    "runs of tiny planes, of which the last is short": ((5, 84, 2, 2), False, "runs", True),
    "runs of 5 x 5": ((4, 24, 5, 5), False, "runs", True),
    "rows": ((4, 48, 3, 3), True, "rows", True),
    "rows of several tiles": ((2, 260, 3, 2), True, "rows", True),
    "rows one by one": ((3, 37, 3, 2), True, "rows", False),
    "features": ((40, 20), False, "rows", True),
    "sequences": ((3, 8, 13), False, "runs", True),
}


def inputs_of(case: str, dtype: torch.dtype, times: int = 1) -> tuple[list[Tensor], list[Tensor]]:
    """The inputs of a case, with `times` as many samples."""
    shape, last, _, _ = CASES[case]
    layout = torch.channels_last if last else torch.contiguous_format
    return inputs((shape[0] * times, *shape[1:]), dtype, layout)


def assert_agrees(
    namespace: str, tensors: list[Tensor], vectors: list[Tensor], grad_sums: Tensor | None, training: bool, relu: bool
) -> None:
    got = outputs(namespace, tensors, vectors, grad_sums, training, relu)
    judges = [[value.double() for value in values] for values in (tensors, vectors)]
    on_cpu = dispatch.namespace("cpu", torch.device("cpu"))
    batch_norm_operators.register(on_cpu)
    wanted = outputs(on_cpu, *judges, None if grad_sums is None else grad_sums.double(), training, relu)
    for name, value, judge in zip(NAMES, got, wanted, strict=True):
        error = (value.double() - judge).norm() / (judge.norm() or 1.0)
        bound = BOUNDS[tensors[0].dtype]
        assert error <= bound, f"{name} training={training} relu={relu}: {error:.1e} > {bound}"


@pytest.mark.parametrize("processors", [1, 7])
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_cpu_operators(
    namespace: str, build_directory: str, case: str, dtype: torch.dtype, processors: int
) -> None:
    shape, _, form, wide = CASES[case]
    emulated.machine["processors"] = processors
    tensors, vectors = inputs_of(case, dtype)
    found = emulated_batch_norm.plan(tensors[0], build_directory)
    if dtype != torch.float64:  # whose vectors have two elements
        assert found[:2] == (form, wide), found
    for training, relu in ((True, False), (True, True), (False, True)):
        grad_sums = torch.randn(2, shape[1], dtype=vectors[0].dtype)
        assert_agrees(namespace, tensors, vectors, grad_sums if training else None, training, relu)


@pytest.mark.parametrize("case", ["planes of whole vectors", "large planes", "runs of 7 x 7", "rows"])
def test_a_split_channel_takes_two_launches_and_an_unsplit_one_takes_one(
    namespace: str, build_directory: str, case: str
) -> None:
    tensors, vectors = inputs_of(case, torch.float32, 24)
    splits = set()
    for processors in (1, 40):
        emulated.machine["processors"] = processors
        splits.add(several := emulated_batch_norm.plan(tensors[0], build_directory)[2] > 1)
        assert_agrees(namespace, tensors, vectors, None, True, True)
        assert emulated.launches["batch_norm_statistics"] == emulated.launches["batch_norm"] == 1
        assert emulated.launches["batch_norm_backward"] == 1 + several
        assert emulated.launches["batch_norm_double_backward"] == 1 + several
    assert splits == {False, True}


@pytest.mark.parametrize("case", ["planes of whole vectors", "runs of 7 x 7", "rows"])
def test_unaligned_views_are_read_element_by_element(namespace: str, build_directory: str, case: str) -> None:
    tensors, vectors = inputs_of(case, torch.bfloat16)
    flat = torch.empty(tensors[1].numel() + 1, dtype=torch.bfloat16)[1:]
    tensors[1] = flat.as_strided(tensors[1].shape, tensors[1].stride()).copy_(tensors[1])
    assert not emulated_batch_norm.plan(tensors[0], build_directory, tensors[1])[1]
    assert_agrees(namespace, tensors, vectors, None, True, True)


@pytest.mark.parametrize("case", ["planes of whole vectors", "runs of 7 x 7", "rows"])
def test_unaligned_parameters_give_the_same_bits(namespace: str, build_directory: str, case: str) -> None:
    tensors, vectors = inputs_of(case, torch.bfloat16)
    assert emulated_batch_norm.plan(tensors[0], build_directory, tensors[1])[1]
    wanted = outputs(namespace, tensors, vectors, None, True, True)
    vectors = [torch.cat([vector.new_zeros(1), vector.flatten()])[1:].view_as(vector) for vector in vectors]
    assert all(vector.data_ptr() % 16 for vector in vectors)
    got = outputs(namespace, tensors, vectors, None, True, True)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("case", ["large planes", "runs of 7 x 7", "rows"])
def test_results_are_bit_identical_in_any_order_of_blocks(namespace: str, case: str, seed: int) -> None:
    emulated.machine["processors"] = 40
    tensors, vectors = inputs_of(case, torch.float32, 24)
    results = []
    for other in range(3):
        emulated.machine["seed"] = seed % 2**30 + other
        results.append(outputs(namespace, tensors, vectors, None, True, True))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("case", ["large planes", "runs of 7 x 7", "rows"])
@pytest.mark.parametrize("mean", [1e3, -3e4])
def test_the_variance_is_accurate_for_a_large_mean_and_an_unrepresentative_pivot(
    namespace: str, case: str, mean: float
) -> None:
    """The pivot is taken from the first elements, which here are unlike the rest."""
    tensors, _ = inputs_of(case, torch.float32, 24)
    input = tensors[0] + mean
    input[: input.shape[0] // 4] = 0.0
    call = getattr(torch.ops, namespace).batch_norm_statistics
    for processors in (1, 40):
        emulated.machine["processors"] = processors
        statistics = call(input, None, None, True, 0.1, 1e-5)
        channels = input.double().transpose(0, 1).flatten(1)
        assert torch.allclose(statistics[0].double(), channels.mean(1), rtol=1e-6)
        wanted = (channels.var(1, unbiased=False) + 1e-5).rsqrt()
        assert torch.allclose(statistics[1].double(), wanted, rtol=1e-5)

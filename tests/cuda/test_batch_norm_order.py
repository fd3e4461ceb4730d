"""The second pass of batch normalisation over a tensor begins with what the first read last."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
import torch
from support import emulated, emulated_batch_norm
from support.batch_norm_operators import inputs, outputs
from support.caches import hits_of_second_pass

#: A block's steps over the input, in order: the byte offsets of what its threads read at the same time.
Steps = list[set[int]]
#: By block.
Pass = dict[int, Steps]

#: (B, C, spatial shape), channels_last, the form, and whether its blocks have steps of the same size. Each has two
#: tiles of channels, which three blocks share if two multiprocessors have room for six blocks.
CASES = {
    "planes": ((192, 2, 8, 8), False, "planes", True),
    "planes of several steps": ((6, 2, 64, 64), False, "planes", True),
    "split planes": ((1, 2, 96, 128), False, "planes", True),
    "planes of which a block's last step is short": ((185, 2, 8, 8), False, "planes", False),
    "planes whose own last step is short": ((6, 2, 68, 62), False, "planes", False),
    "runs of 7 x 7": ((90, 8, 7, 7), False, "runs", True),
    "runs of 7 x 7, the last step short": ((88, 8, 7, 7), False, "runs", False),
    "rows": ((12, 64, 8, 8), True, "rows", True),
    "rows, the last step short": ((767, 64), False, "rows", False),
}


def steps_of(accesses: list[tuple[int, int]]) -> Steps:
    """The steps of a block, from its accesses (thread, offset): a thread reads one vector at each."""
    taken: Counter[int] = Counter()
    steps: defaultdict[int, set[int]] = defaultdict(set)
    for thread, offset in accesses:
        steps[taken[thread]].add(offset)
        taken[thread] += 1
    return [steps[step] for step in range(len(steps))]


def passes_of(kernel: list[tuple[int, int, int]]) -> tuple[Pass, Pass]:
    """The first and the last pass of a kernel's blocks over the input, which may be the same one."""
    blocks: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for block, thread, offset in kernel:
        blocks[block].append((thread, offset))
    sizes = {block: len({offset for _, offset in accesses}) for block, accesses in blocks.items()}
    first = {block: steps_of(accesses[: sizes[block]]) for block, accesses in blocks.items()}
    return first, {block: steps_of(accesses[-sizes[block] :]) for block, accesses in blocks.items()}


def pairs_of_passes(case: str, processors: int, namespace: str, directory: str) -> tuple[bool, list[tuple[Pass, Pass]]]:
    """Whether channels are split; for the forward, the first and the second derivative, both passes over the input."""
    shape, last, form, _ = CASES[case]
    emulated.machine["processors"] = processors
    tensors, vectors = inputs(shape, torch.float32, torch.channels_last if last else torch.contiguous_format)
    found = emulated_batch_norm.plan(tensors[0], directory)
    assert found[:2] == (form, True), found
    kernels = emulated.module("batch_norm", directory)
    kernels.watch(tensors[0].data_ptr(), tensors[0].nbytes)
    outputs(namespace, tensors, vectors, None, True, True)
    passes = [passes_of(kernel) for kernel in kernels.accesses()]
    split = found[2] > 1
    # The statistics read the pivot's vectors before their pass.
    pairs = [(passes[0][1], passes[1][0])]
    if split:
        pairs += [(passes[2][0], passes[3][0]), (passes[4][0], passes[5][0])]
    else:
        pairs += passes[2:]
    return split, pairs


@pytest.mark.parametrize("processors", [1, 2])
@pytest.mark.parametrize("case", [case for case, (*_, equal) in CASES.items() if equal])
def test_the_second_pass_takes_the_steps_of_the_first_in_reverse(
    namespace: str, build_directory: str, case: str, processors: int
) -> None:
    split, pairs = pairs_of_passes(case, processors, namespace, build_directory)
    assert split == (processors == 2)
    for index, (first, second) in enumerate(pairs):
        one_kernel = index > 0 and not split
        for block, steps in first.items():
            assert len(steps) >= 4
            assert second[block if one_kernel else len(first) - 1 - block] == steps[::-1]


def lockstep(blocks: Pass) -> list[int]:
    """The offsets in the order in which resident blocks read them that progress at the same rate."""
    order = [(step, block, offset) for block, steps in blocks.items() for step, at in enumerate(steps) for offset in at]
    return [offset for _, _, offset in sorted(order)]


@pytest.mark.parametrize("case", CASES)
def test_a_cache_of_half_the_tensor_serves_the_second_pass_what_it_holds(
    namespace: str, build_directory: str, case: str
) -> None:
    for first, second in pairs_of_passes(case, 2, namespace, build_directory)[1]:
        capacity = sum(len(at) for steps in first.values() for at in steps) // 2
        assert hits_of_second_pass(lockstep(first), lockstep(second), capacity) >= 0.9 * capacity
        assert hits_of_second_pass(lockstep(first), lockstep(first), capacity) == 0

"""DistributedDataParallel, FSDP2 and SyncBatchNorm in two processes, each step checked by the float64 judge."""

from __future__ import annotations

import functools
import inspect

import pytest
import torch
from support import distributed_steps as steps
from support.compare import relative_error
from support.networks import SmallNet, batch
from support.processes import Pair
from torch import nn

import pal_fast.nn
from pal_fast.attribution import finite_difference, graph

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this PyTorch is built without gloo",
)


@pytest.fixture(scope="module")
def pair():
    processes = Pair()
    yield processes
    processes.stop()


@pytest.fixture
def run(pair, seed):
    return functools.partial(pair.run, seed=seed)


@pytest.mark.parametrize("cross_entropy", [True, False], ids=["with cross-entropy", "the loss alone"])
@pytest.mark.parametrize(
    "options",
    [{}, {"find_unused_parameters": True}, {"static_graph": True}, {"gradient_as_bucket_view": True}],
    ids=["default", "find_unused_parameters", "static_graph", "bucket_view"],
)
def test_ddp_averages_the_gradients_of_the_judge(options, cross_entropy, run):
    run(steps.ddp, options, cross_entropy, True)


def test_ddp_with_the_loss_constructed_on_the_inner_model(run):
    run(steps.ddp, {"static_graph": True}, True, False)


def test_ddp_static_graph_with_a_callable_target(run):
    run(steps.ddp_callable_target)


@pytest.mark.parametrize("by_differences", [False, True], ids=["exact", "finite_difference"])
def test_ddp_static_graph_refuses_a_function_of_its_logits(by_differences, run):
    run(steps.ddp_scaled_logits, by_differences)


def test_ddp_no_sync_accumulates(run):
    run(steps.ddp_no_sync)


@pytest.mark.parametrize("cross_entropy", [True, False], ids=["with cross-entropy", "the loss alone"])
@pytest.mark.parametrize("accumulate", [False, True], ids=["each step", "accumulating"])
def test_fully_shard_averages_the_gradients_of_the_judge(cross_entropy, accumulate, run):
    run(steps.fsdp, cross_entropy, accumulate)


@pytest.mark.parametrize("sharded", [False, True], ids=["DDP", "FSDP2"])
def test_finite_differences_average_the_gradients_of_the_judge(sharded, run):
    run(steps.finite_difference, sharded)


@pytest.mark.parametrize("after_a_step", [False, True], ids=["before the first step", "after a step"])
@pytest.mark.parametrize(
    "options", [{}, {"static_graph": True}, {"find_unused_parameters": True}], ids=["default", "static", "unused"]
)
@pytest.mark.parametrize("nested", [False, True], ids=["the model", "a part of it"])
def test_check_under_ddp_inspects_the_wrapped_network_and_disturbs_no_reduction(nested, options, after_a_step, run):
    run(steps.check_under_ddp, options, nested, after_a_step)


@pytest.mark.parametrize("nested", [False, True], ids=["the model", "a part of it"])
@pytest.mark.parametrize(
    "options", [{}, {"static_graph": True}, {"find_unused_parameters": True}], ids=["default", "static", "unused"]
)
def test_attribute_under_ddp_disturbs_no_reduction_and_needs_no_other_process(options, nested, run):
    run(steps.attribute_under_ddp, options, nested)


def test_check_under_fully_shard_is_refused(run):
    run(steps.check_under_fully_shard)


@pytest.mark.parametrize("above", [True, False], ids=["above the layer", "below"])
def test_finite_differences_refuse_sync_batchnorm_above_the_layer(above, run):
    run(steps.sync_batchnorm_by_differences, above)


def test_fsdp1_is_refused(run):
    run(steps.fsdp1)


@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "under DDP"])
def test_sync_batchnorm_equals_batchnorm_on_the_whole_batch(wrapped, run):
    run(steps.sync_batchnorm, wrapped)


def test_sync_batchnorm_in_eval_mode_does_not_communicate(run):
    run(steps.sync_batchnorm_without_running_statistics)


@pytest.mark.skipif(
    "bias" not in inspect.signature(nn.BatchNorm2d).parameters, reason="this PyTorch's BatchNorm has always a bias"
)
def test_sync_batchnorm_without_bias(run):
    run(steps.sync_batchnorm_without_bias)


def test_without_a_process_group_sync_batchnorm_is_batchnorm():
    model = SmallNet().double()
    images, _, _ = batch()
    wanted = model(images)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pal_fast.nn.convert_sync_batchnorm(model)
    assert isinstance(model.stem[1], pal_fast.nn.SyncBatchNorm)
    assert any(p is model.stem[1].weight for p in optimizer.param_groups[0]["params"])
    assert relative_error(model(images), wanted) < 1e-14


def test_torchs_sync_batchnorm_above_the_layer_is_refused_by_name():
    class Node:
        def name(self):
            return "SyncBatchNormBackward"

    assert "convert_sync_batchnorm" in graph.refusal([Node()])
    with pytest.raises(RuntimeError, match="convert_sync_batchnorm"):
        finite_difference.refuse_other_processes([Node()])
    assert isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(SmallNet()).stem[1], nn.SyncBatchNorm)

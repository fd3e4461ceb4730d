"""The code run by the processes of `tests/training_loops/test_distributed.py`."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import pal_fast
import pal_fast.nn
from support.compare import relative_error
from support.networks import SmallNet, batch, gradient_error, judged, twin


class Branched(SmallNet):
    """Has a branch that a forward may skip."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(3, 3)


def shares(rank: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The whole batch, the same in every process, and this process's share of it."""
    whole = batch(8)
    return whole, tuple(t.chunk(2)[rank] for t in whole)


def averaged(model: nn.Module, layer: str, whole: tuple[Tensor, ...], cross_entropy: bool) -> dict[str, Tensor]:
    """The reference gradients, averaged over two halves of the batch."""
    halves = [
        judged(twin(model), layer, images, labels if cross_entropy else None, landmarks)[1]
        for images, labels, landmarks in zip(*(t.chunk(2) for t in whole), strict=True)
    ]
    return {n: (halves[0][n] + halves[1][n]) / 2 for n in halves[0]}


def loss_of(pal: Any, logits: Tensor, labels: Tensor, landmarks: Tensor, cross_entropy: bool) -> Tensor:
    loss: Tensor = pal(logits, landmarks)
    return loss + nn.functional.cross_entropy(logits, labels) if cross_entropy else loss


def ddp(rank: int, options: dict[str, Any], cross_entropy: bool, on_wrapper: bool) -> None:
    model = (Branched if options.get("find_unused_parameters") else SmallNet)().double()
    whole, (images, labels, landmarks) = shares(rank)
    wanted = averaged(model, "middle", whole, cross_entropy)
    wrapped = DistributedDataParallel(model, **options)
    pal = pal_fast.PALLoss(wrapped if on_wrapper else model, "middle")
    for step in range(3):
        model.zero_grad()
        logits = wrapped(images)
        loss_of(pal, logits, labels, landmarks, cross_entropy).backward()
        assert gradient_error(model, wanted) < 1e-10, f"step {step}"


def check_under_ddp(rank: int, options: dict[str, Any], nested: bool, after_a_step: bool) -> None:
    """`pal.check` sees the wrapped network, and later steps are all-reduced as usual."""
    model = SmallNet().double()
    whole, (images, labels, landmarks) = shares(rank)
    wanted = averaged(model, "middle", whole, True)
    wrapper = DistributedDataParallel(model, **options)
    wrapped, layer = (nn.Sequential(wrapper), "0.middle") if nested else (wrapper, "middle")
    pal = pal_fast.PALLoss(wrapped, layer)

    def step() -> None:
        model.zero_grad()
        logits = wrapped(images)
        loss_of(pal, logits, labels, landmarks, True).backward()
        assert gradient_error(model, wanted) < 1e-10

    if after_a_step:
        step()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = pal.check(images)
    assert report.problems == []
    assert report.layers[0].weights_above[0] >= 3
    assert report.layers[0].weights_below[0] >= 3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for _ in range(3):
        step()


def attribute_under_ddp(rank: int, options: dict[str, Any], nested: bool) -> None:
    """`attribute` does not touch the reducer, in either mode, so one process may call it without the others."""
    model = SmallNet().double()
    whole, (images, labels, landmarks) = shares(rank)
    wanted = averaged(model, "middle", whole, True)
    maps, _ = pal_fast.attribute(twin(model), "middle", images)
    wrapper = DistributedDataParallel(model, **options)
    outer, layer = (nn.Sequential(wrapper), "0.middle") if nested else (wrapper, "middle")
    pal = pal_fast.PALLoss(outer, layer)

    def look() -> None:
        for training in (False, True):
            outer.train(training)
            found, _ = pal_fast.attribute(outer, layer, images)
        assert relative_error(found, maps) < 1e-12
        assert "forward" not in vars(wrapper)

    look()
    for _ in range(3):
        model.zero_grad()
        logits = outer(images)
        loss_of(pal, logits, labels, landmarks, True).backward()
        assert gradient_error(model, wanted) < 1e-10
        if rank == 0:
            look()


def check_under_fully_shard(rank: int) -> None:
    from torch.distributed.fsdp import fully_shard

    model = SmallNet()
    fully_shard(model, mesh=dist.init_device_mesh("cpu", (2,)))
    pal = pal_fast.PALLoss(model, "middle")
    with pytest.raises(TypeError, match=r"under fully_shard, .* call pal\.check before"):
        pal.check(batch(dtype=torch.float32)[0])


def ddp_callable_target(rank: int) -> None:
    model = SmallNet().double()
    _, (images, labels, landmarks) = shares(rank)
    _, wanted = judged(twin(model), "middle", images, None, landmarks, scalar=lambda z: z.square().sum())
    for gradient in wanted.values():
        dist.all_reduce(gradient)
        gradient /= 2
    wrapped = DistributedDataParallel(model, static_graph=True)
    pal = pal_fast.PALLoss(wrapped, "middle", target=lambda z, y: z.square().sum(1))
    for _ in range(2):
        model.zero_grad()
        pal(wrapped(images), landmarks, labels=labels).backward()
        assert gradient_error(model, wanted) < 1e-10


def ddp_scaled_logits(rank: int, by_differences: bool) -> None:
    model = SmallNet().double()
    _, (images, _, landmarks) = shares(rank)
    wrapped = DistributedDataParallel(model, static_graph=True)
    options: dict[str, Any] = {"second_order": "finite_difference", "head": model.head} if by_differences else {}
    pal = pal_fast.PALLoss(wrapped, "middle", **options)
    with pytest.raises(RuntimeError, match="the very tensor that the wrapped model returned"):
        pal(wrapped(images) / 2, landmarks)


def ddp_no_sync(rank: int) -> None:
    model = SmallNet().double()
    whole, (images, labels, landmarks) = shares(rank)
    wanted = averaged(model, "middle", whole, True)
    wrapped = DistributedDataParallel(model)
    pal = pal_fast.PALLoss(wrapped, "middle")
    for part in range(2):
        with wrapped.no_sync() if part == 0 else contextlib.nullcontext():
            logits = wrapped(images)
            (loss_of(pal, logits, labels, landmarks, True) / 2).backward()
    assert gradient_error(model, wanted) < 1e-10


def fsdp(rank: int, cross_entropy: bool, accumulate: bool) -> None:
    from torch.distributed.fsdp import fully_shard

    model = SmallNet().double()
    whole, (images, labels, landmarks) = shares(rank)
    wanted = averaged(model, "middle", whole, cross_entropy)
    mesh = dist.init_device_mesh("cpu", (2,))
    for name in ("stem", "middle", "top", "classifier"):
        fully_shard(model.get_submodule(name), mesh=mesh)
    fully_shard(model, mesh=mesh)
    pal = pal_fast.PALLoss(model, "middle")
    for step in range(3):
        model.zero_grad()
        for part in range(2 if accumulate else 1):
            if accumulate:
                model.set_requires_gradient_sync(part == 1)
            logits = model(images)
            loss = loss_of(pal, logits, labels, landmarks, cross_entropy)
            (loss / 2 if accumulate else loss).backward()
        error = relative_error(
            torch.cat([p.grad.full_tensor().flatten() for p in model.parameters()]),
            torch.cat([wanted[n].flatten() for n, _ in model.named_parameters()]),
        )
        assert error < 1e-10, f"step {step}: {error}"


def finite_difference(rank: int, sharded: bool) -> None:
    """Finite differences re-run the head under DDP or FSDP2."""
    from torch.distributed.fsdp import fully_shard

    model = SmallNet().double()
    whole, (images, labels, landmarks) = shares(rank)
    wanted = averaged(model, "middle", whole, True)
    wrapped: nn.Module = model
    if sharded:
        for name in ("stem", "middle", "top", "classifier"):
            fully_shard(model.get_submodule(name), mesh=dist.init_device_mesh("cpu", (2,)))
        fully_shard(model)
    else:
        wrapped = DistributedDataParallel(model)
    pal = pal_fast.PALLoss(wrapped, "middle", second_order="finite_difference", head=model.head)
    for step in range(3):
        model.zero_grad()
        logits = wrapped(images)
        loss_of(pal, logits, labels, landmarks, True).backward()
        grads = {n: p.grad.full_tensor() if sharded else p.grad for n, p in model.named_parameters()}
        error = relative_error(
            torch.cat([grads[n].flatten() for n in wanted]), torch.cat([wanted[n].flatten() for n in wanted])
        )
        assert error < 1e-5, f"step {step}: {error}"


def fsdp1(rank: int) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(SmallNet(), device_id=torch.device("cpu"))
    with pytest.raises(TypeError, match="fully_shard"):
        pal_fast.PALLoss(model, "middle")


def sync_batchnorm(rank: int, wrapped: bool) -> None:
    """Equal to the large batch: outputs, statistics and gradients, second derivatives included."""
    model = SmallNet().double()
    whole, (images, _, landmarks) = shares(rank)
    judge = twin(model)
    loss, wanted = judged(judge, "middle", whole[0], None, whole[2])
    logits = copy.deepcopy(judge)(whole[0])[len(images) * rank : len(images) * (rank + 1)]
    assert pal_fast.nn.convert_sync_batchnorm(model) is model
    layer = DistributedDataParallel(model) if wrapped else model
    pal = pal_fast.PALLoss(layer, "middle")
    own_logits = layer(images)
    assert relative_error(own_logits, logits) < 1e-12
    own = pal(own_logits, landmarks)
    own.backward()
    mean = own.detach() / 2
    dist.all_reduce(mean)
    assert relative_error(mean, loss) < 1e-12
    if not wrapped:
        for p in model.parameters():
            if p.grad is not None:
                dist.all_reduce(p.grad)
                p.grad /= 2
    assert gradient_error(model, wanted) < 1e-12
    for name, buffer in judge.named_buffers():
        assert relative_error(model.get_buffer(name), buffer) < 1e-12, name


def sync_batchnorm_without_running_statistics(rank: int) -> None:
    """In eval mode it uses the batch's own statistics, so one process may evaluate without the others."""
    plain = nn.BatchNorm2d(3, track_running_stats=False).double().eval()
    layer = pal_fast.nn.convert_sync_batchnorm(copy.deepcopy(plain))
    whole, (images, _, _) = shares(rank)
    if rank == 0:
        assert torch.equal(layer(images), plain(images))
    wanted = plain(whole[0])[len(images) * rank :][: len(images)]
    assert relative_error(layer.train()(images), wanted) < 1e-12


def sync_batchnorm_without_bias(rank: int) -> None:
    whole, (images, _, _) = shares(rank)
    plain = nn.BatchNorm2d(3, bias=False).double()
    nn.init.uniform_(plain.weight, 1, 2)
    made = pal_fast.nn.SyncBatchNorm(3, bias=False).double()
    made.load_state_dict(plain.state_dict())
    converted = pal_fast.nn.convert_sync_batchnorm(copy.deepcopy(plain))
    wanted = plain(whole[0])[len(images) * rank :][: len(images)]
    for layer in (made, converted):
        assert [name for name, _ in layer.named_parameters()] == ["weight"]
        assert relative_error(layer(images), wanted) < 1e-12


def sync_batchnorm_by_differences(rank: int, above: bool) -> None:
    """Above the layer it is refused, since each process would take its own step size; below, it is accepted."""
    model = SmallNet().double()
    whole, (images, _, landmarks) = shares(rank)
    judge = twin(model)
    if not above:
        judge.top[1] = model.top[1] = nn.Identity()
    _, wanted = judged(judge, "middle", whole[0], None, whole[2])
    pal_fast.nn.convert_sync_batchnorm(model)
    wrapped = DistributedDataParallel(model)
    pal = pal_fast.PALLoss(wrapped, "middle", second_order="finite_difference", head=model.head)
    logits = wrapped(images)
    if above:
        with pytest.raises(RuntimeError, match="one step for all samples, but SyncBatchNorm couples the samples"):
            pal(logits, landmarks)
        return
    pal(logits, landmarks).backward()
    assert gradient_error(model, wanted) < 1e-5

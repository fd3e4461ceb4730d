"""Lightning Fabric refuses gradients of the model's output that bypass `fabric.backward`: the loss's inner gradient is
let through, and nothing else is."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from support.networks import SmallNet, batch, batch_off_kinks, gradient_error, judged, twin
from torch.nn.functional import cross_entropy

import pal_fast
from pal_fast.attribution import fabric as fabric_support

fabric_package = pytest.importorskip("lightning.fabric", reason="lightning is not installed")

GUARD = r"requires you to call `fabric\.backward\(loss\)`"


def fabric_of(precision):
    if precision != "16-mixed":
        return fabric_package.Fabric(accelerator="cpu", devices=1, precision=precision)
    # On a CPU, Fabric itself replaces float16 by bfloat16.
    from lightning.fabric.plugins import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=256)
    return fabric_package.Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision(precision, "cpu", scaler))


@pytest.fixture
def mixed():
    """A mixed-precision Fabric and a network set up by it."""
    fabric = fabric_of("bf16-mixed")
    return fabric, fabric.setup(SmallNet())


@pytest.fixture
def data():
    return batch(dtype=torch.float32)


def test_a_step_under_fabric_matches_the_double_backward():
    fabric, network = fabric_of("32-true"), SmallNet()
    images, labels, landmarks = batch_off_kinks(network)
    _, wanted = judged(twin(network), "middle", images, labels, landmarks)
    model = fabric.setup(network)
    pal = pal_fast.PALLoss(model, "middle")
    logits = model(images)
    fabric.backward(cross_entropy(logits, labels) + pal(logits, landmarks))
    assert gradient_error(network, wanted) < 1e-4


@pytest.mark.parametrize("on", ["wrapper", "network"])
@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16)])
def test_a_mixed_precision_step_equals_that_of_plain_pytorch(precision, dtype, on, data):
    images, labels, landmarks = data
    fabric, network = fabric_of(precision), SmallNet()
    plain = twin(network).float()
    pal = pal_fast.PALLoss(plain, "middle")
    # Fabric casts the network's input to the lower precision and its output to float32.
    with torch.autocast("cpu", dtype):
        logits = plain(images.to(dtype)).float()
    (cross_entropy(logits, labels) + pal(logits, landmarks)).backward()
    model, optimizer = fabric.setup(network, torch.optim.SGD(network.parameters(), 0.1))
    pal = pal_fast.PALLoss(model if on == "wrapper" else network, "middle")
    logits = model(images)
    fabric.backward(cross_entropy(logits, labels) + pal(logits, landmarks))
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    if scaler is not None:
        scaler.unscale_(optimizer.optimizer)
    assert gradient_error(network, {name: parameter.grad for name, parameter in plain.named_parameters()}) < 0.01


@pytest.mark.parametrize("compute", ["check", "attribute"])
def test_check_and_attribute_work_under_fabric(compute, mixed, data):
    _, model = mixed
    if compute == "check":
        assert pal_fast.PALLoss(model, "middle").check(data[0]).problems == []
    else:
        maps, _ = pal_fast.attribute(model, "middle", data[0])
        assert maps.isfinite().all()


def test_layers_keep_the_networks_own_names(mixed):
    _, model = mixed
    assert pal_fast.PALLoss(model, "middle.0").layers == ("middle.0",)
    assert pal_fast.PALLoss(model, model.module.middle).layers == ("middle",)
    with pytest.raises(ValueError, match=r"'midle' is not a module .*'middle'"):
        pal_fast.PALLoss(model, "midle")


@pytest.mark.parametrize("target", ["sum", "label", lambda logits, labels: logits.sum(1)], ids=["sum", "label", "own"])
def test_fabric_still_refuses_a_backward_that_bypasses_its_own(target, mixed, data):
    images, labels, landmarks = data
    _, model = mixed
    pal = pal_fast.PALLoss(model, "middle", target=target)
    logits = model(images)
    loss = cross_entropy(logits, labels) + pal(logits, landmarks, labels=labels)
    with pytest.raises(RuntimeError, match=GUARD):
        loss.backward()


def test_fabrics_guard_is_restored_after_an_error(mixed, data):
    images, _, landmarks = data
    _, model = mixed

    def target(logits, labels):
        raise ValueError("not today")

    pal = pal_fast.PALLoss(model, "middle", target=target)
    logits = model(images)
    with pytest.raises(ValueError, match="not today"):
        pal(logits, landmarks)
    with pytest.raises(RuntimeError, match=GUARD):
        logits.sum().backward()


def test_the_users_own_hooks_on_the_output_run(mixed, data):
    """A hook that drops the gradient of all logits but the first turns the target "sum" into the first logit."""
    images, labels, _ = data
    _, model = mixed
    wanted, _ = pal_fast.attribute(model, "middle", images, target="label", labels=torch.zeros_like(labels))

    def drop(module, args, logits):
        logits.register_hook(lambda g: g * (torch.arange(g.shape[1]) == 0))

    model.register_forward_hook(drop)
    maps, _ = pal_fast.attribute(model, "middle", images)
    torch.testing.assert_close(maps, wanted)


def test_an_error_that_is_not_fabrics_is_passed_on_as_it_is():
    with pytest.raises(RuntimeError, match="of its own") as raised, fabric_support.inner_gradients():
        raise RuntimeError("an error of its own")
    assert not isinstance(raised.value, ValueError)


def test_deepspeed_is_refused_by_name(mixed, data, monkeypatch):
    images, _, landmarks = data
    _, model = mixed
    monkeypatch.setitem(sys.modules, "deepspeed.runtime.engine", ModuleType("deepspeed.runtime.engine"))
    pal = pal_fast.PALLoss(model, "middle")
    with pytest.raises(RuntimeError, match="strategy that is not DeepSpeed"):
        pal(model(images), landmarks)

"""The examples in docs/integrations, read from the pages: they run, they train, they are short."""

from __future__ import annotations

import pytest
import torch
from support.compare import relative_error
from support.integrations import FOLDER, block_of, example
from support.networks import SmallNet, batch_off_kinks, judged, twin
from torch.utils.data import DataLoader, TensorDataset

#: The two batches of four that an unshuffled loader takes from `data`.
HALVES = slice(0, 4), slice(4, 8)


@pytest.fixture
def network():
    return SmallNet()


@pytest.fixture
def data(network):
    return TensorDataset(*batch_off_kinks(network, 8, together=4))


def expected(network, images, labels, landmarks, *, cross_entropy=True):
    """The judge's loss and gradients on a batch, where each sample's own logit is attributed."""
    return judged(
        twin(network),
        "middle",
        images,
        labels if cross_entropy else None,
        landmarks,
        scalar=lambda logits: logits.gather(1, labels[:, None]).sum(),
    )


def assert_trains(network, run) -> None:
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    keys = list(network.state_dict())
    run()
    assert all(not torch.equal(p.cpu(), before[n]) for n, p in network.named_parameters() if n.endswith("weight"))
    assert all(torch.isfinite(p).all() for p in network.parameters())
    assert list(network.state_dict()) == keys


def assert_one_step(network, data, run) -> None:
    """`run` takes one step of SGD at 0.1 on cross-entropy plus the loss, averaged over two batches of four, with the
    judge's gradients."""
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    halves = [expected(network, *(t[part] for t in data.tensors))[1] for part in HALVES]
    assert_trains(network, run)
    moved = torch.cat([(before[n] - p.cpu()).flatten() for n, p in network.named_parameters()])
    wanted = torch.cat([0.1 * (halves[0][n] + halves[1][n]).flatten() / 2 for n in before])
    assert relative_error(moved, wanted) < 1e-3


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.md")), ids=lambda path: path.stem)
def test_every_example_is_under_40_lines(path):
    assert len(block_of(path).code.splitlines()) < 40


def test_the_plain_loop(network, data):
    loader, optimizer = DataLoader(data, 4), torch.optim.SGD(network.parameters(), 0.1)
    train = example("plain_loop").train
    assert_one_step(network, data, lambda: train(network, loader, optimizer, "middle", accumulate=2))
    assert not network.middle._forward_hooks


def gradients_of(network):
    """A copy of every parameter's gradient, by name."""
    return {n: torch.zeros(()) if p.grad is None else p.grad.clone() for n, p in network.named_parameters()}


def gradients_at_each_step(network, optimizer):
    """A list to which each later optimiser step appends the gradients it starts from."""
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(gradients_of(network)))
    return seen


def three_batches_and_gradients(network):
    """A loader of three batches of four, and the judge's gradients of each batch."""
    data = TensorDataset(*batch_off_kinks(network, 12, together=4))
    parts = [slice(0, 4), slice(4, 8), slice(8, 12)]
    return DataLoader(data, 4), [expected(network, *(t[part] for t in data.tensors))[1] for part in parts]


def assert_steps(seen, wanted):
    assert len(seen) == len(wanted)
    for got, of in zip(seen, wanted, strict=True):
        assert relative_error(*(torch.cat([g[n].flatten().double() for n in of]) for g in (got, of))) < 1e-3


def means_of_groups(parts, accumulate):
    """The mean gradients of each `accumulate` batches, and of those that are left."""
    groups = [parts[start : start + accumulate] for start in range(0, len(parts), accumulate)]
    return [{name: sum(part[name] for part in group) / len(group) for name in parts[0]} for group in groups]


class Stream:
    """A loader without a length."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        return iter(self.loader)


@pytest.mark.parametrize("kind", [lambda loader: loader, Stream], ids=["sized", "stream"])
@pytest.mark.parametrize("accumulate", [2, 4])
def test_the_plain_loop_steps_on_an_incomplete_accumulation_at_the_end_of_an_epoch(network, kind, accumulate):
    loader, parts = three_batches_and_gradients(network)
    optimizer = torch.optim.SGD(network.parameters(), 0.0)
    seen = gradients_at_each_step(network, optimizer)
    example("plain_loop").train(network, kind(loader), optimizer, "middle", epochs=2, accumulate=accumulate)
    assert_steps(seen, 2 * means_of_groups(parts, accumulate))
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("accumulate", [2, 4])
def test_fabric_steps_on_an_incomplete_accumulation_at_the_end_of_an_epoch(network, accumulate):
    pytest.importorskip("lightning", reason="lightning is not installed")
    loader, parts = three_batches_and_gradients(network)
    optimizer = torch.optim.SGD(network.parameters(), 0.0)
    seen = gradients_at_each_step(network, optimizer)
    options = {"accelerator": "cpu", "devices": 1}
    example("fabric").train(network, loader, optimizer, "middle", epochs=2, accumulate=accumulate, **options)
    assert_steps(seen, 2 * means_of_groups(parts, accumulate))
    assert all(parameter.grad is None for parameter in network.parameters())


def test_accelerate_divides_an_incomplete_accumulation_by_the_full_count(network):
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    loader, parts = three_batches_and_gradients(network)
    optimizer = torch.optim.SGD(network.parameters(), 0.0)
    seen = gradients_at_each_step(network, optimizer)
    example("accelerate").train(network, loader, optimizer, "middle", 2, cpu=True, gradient_accumulation_steps=2)
    mean = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
    rest = {name: parts[2][name] / 2 for name in parts[2]}
    assert_steps(seen, [mean, rest, mean, rest])
    assert all(parameter.grad is None for parameter in network.parameters())


def test_accelerate(network, data):
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    loader, optimizer = DataLoader(data, 4), torch.optim.SGD(network.parameters(), 0.1)
    train = example("accelerate").train
    options = {"cpu": True, "gradient_accumulation_steps": 2}
    assert_one_step(network, data, lambda: train(network, loader, optimizer, "middle", **options))


def test_fabric(network, data):
    pytest.importorskip("lightning", reason="lightning is not installed")
    loader, optimizer = DataLoader(data, 4), torch.optim.SGD(network.parameters(), 0.1)
    train = example("fabric").train
    options = {"accelerator": "cpu", "devices": 1}
    assert_one_step(network, data, lambda: train(network, loader, optimizer, "middle", accumulate=2, **options))
    assert_trains(network, lambda: train(network, loader, optimizer, "middle", precision="bf16-mixed", **options))


def test_lightning(network, data, tmp_path):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")
    loader = DataLoader(data, 4)
    module = example("lightning").Classifier(network, "middle")
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    wanted, _ = expected(network, *(t[HALVES[0]] for t in data.tensors), cross_entropy=False)
    calls = []
    module.pal.register_forward_hook(lambda m, args, loss: calls.append((args[0].detach(), loss.item())))
    assert_trains(network, lambda: trainer.fit(module, loader, loader))
    assert len(calls) == 2
    assert abs(calls[0][1] - wanted.item()) < 1e-4
    (logits, loss), labels = calls[-1], data.tensors[1][HALVES[1]]
    total = torch.nn.functional.cross_entropy(logits, labels).item() + loss
    assert trainer.callback_metrics["train_loss"].item() == pytest.approx(total, abs=1e-5)
    saved = torch.load(next(tmp_path.rglob("*.ckpt")), weights_only=False)["state_dict"]
    assert list(saved) == [f"model.{key}" for key in network.state_dict()]


def test_lightning_divides_an_incomplete_accumulation_by_the_full_count(network, tmp_path):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")
    loader, parts = three_batches_and_gradients(network)
    module = example("lightning").Classifier(network, "middle", learning_rate=0.0)
    seen = []
    # Lightning's last backward pass of a step runs inside the optimiser's step.
    module.on_before_optimizer_step = lambda optimizer: seen.append(gradients_of(network))
    trainer = lightning.Trainer(
        max_epochs=2,
        accumulate_grad_batches=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, loader)
    mean = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
    rest = {name: parts[2][name] / 2 for name in parts[2]}
    assert_steps(seen, [mean, rest, mean, rest])

"""Functions that inspect a network restore each module's train or eval mode, even if the modules' modes differ."""

from __future__ import annotations

import pytest
import torch
from support.networks import SmallNet, batch
from torch import nn

import pal_fast
from pal_fast.capture.candidates import candidates
from pal_fast.capture.model_run import in_mode
from pal_fast.compiled import compile_body
from pal_fast.explain import explain
from pal_fast.nn import prepare_head
from pal_fast.training.evaluation import evaluate_network
from pal_fast.training.gallery import Gallery

CPU = torch.device("cpu")


def evaluated(network, images, labels, landmarks):
    batches = [{"image": images, "label": labels, "index": torch.arange(4), "landmarks": landmarks}]
    evaluate_network(network, batches, "abcde", device=CPU, layers=["middle"])


def shown_in_the_gallery(network, images, labels, landmarks):
    gallery = Gallery(images, landmarks, labels, list(range(4)), list("abcd"))
    gallery.look(network, "middle", device=CPU, batch=2, sigma=None)


INSPECTIONS = {
    "explain": lambda network, images, labels, landmarks: explain(
        torch.randint(0, 255, (3, 20, 20), dtype=torch.uint8), landmarks[0], network, "middle", size=16, crop="whole"
    ),
    "evaluate": evaluated,
    "gallery": shown_in_the_gallery,
    "check": lambda network, images, labels, landmarks: pal_fast.PALLoss(network, "middle").check(images),
    "attribute": lambda network, images, labels, landmarks: pal_fast.attribute(network, "middle", images),
    "candidates": lambda network, images, labels, landmarks: candidates(network, images),
    "prepare_head": lambda network, images, labels, landmarks: prepare_head(network, "middle", images),
    "compile_body": lambda network, images, labels, landmarks: compile_body(network, "middle", images),
}


@pytest.fixture(params=["one is frozen", "one trains", "all train", "none trains"])
def network(request):
    network = SmallNet().train(request.param in ("one is frozen", "all train"))
    if request.param.startswith("one"):
        network.middle.train(request.param == "one trains")
    return network


def modes(network):
    return {name: module.training for name, module in network.named_modules()}


@pytest.mark.parametrize("run_inspection", INSPECTIONS.values(), ids=INSPECTIONS)
def test_each_modules_mode_is_restored(run_inspection, network):
    before = modes(network)
    run_inspection(network, *batch(dtype=torch.float32))
    assert modes(network) == before


@pytest.mark.parametrize("training", [True, False])
def test_the_context_sets_one_mode_for_the_whole_model_and_restores_modes_after_an_error(training, network):
    before, inside = modes(network), []

    def fails():
        inside.extend(modes(network).values())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), in_mode(network, training=training):
        fails()
    assert set(inside) == {training}
    assert modes(network) == before


def test_a_model_whose_train_method_keeps_a_part_in_eval_mode_is_respected():
    class Frozen(SmallNet):
        def train(self, mode: bool = True) -> nn.Module:
            super().train(mode)
            self.stem.eval()
            return self

    network = Frozen().train()
    before = modes(network)
    for run_inspection in INSPECTIONS.values():
        run_inspection(network, *batch(dtype=torch.float32))
        assert modes(network) == before

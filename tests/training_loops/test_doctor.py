"""`pal-fast doctor` lists layers and checks the chosen one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from support.networks import SmallNet, Tokens
from torch import nn

import pal_fast
from pal_fast.capture.candidates import candidates
from pal_fast.cli import main
from pal_fast.cli.doctor import build


@pytest.fixture(autouse=True)
def _networks(monkeypatch):
    module = types.ModuleType("some_networks")
    module.small, module.number = SmallNet, lambda: 3
    monkeypatch.setitem(sys.modules, "some_networks", module)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the command adds the working directory


def test_doctor_lists_the_layers_with_a_map(capsys):
    assert main(["doctor", "some_networks:small", "--size", "32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines if line.startswith("  ")][1:]
    assert names[-1] == "top"
    assert {"stem", "middle", "top.0"} <= set(names)
    assert not {"pool", "classifier"} & set(names)


def test_doctor_checks_a_layer(capsys):
    assert main(["doctor", "some_networks:small", "--size", "32", "--layer", "middle", "--layer", "top"]) == 0
    text = capsys.readouterr().out
    assert "layer middle: (2, 8, 16, 16) from NCHW" in text
    assert "no problem found" in text


def test_doctor_checks_a_layer_of_a_real_network(capsys):
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    pytest.importorskip("timm", reason="timm is not installed")
    assert main(["doctor", "resnet18", "--size", "64", "--layer", "layer3"]) == 0
    text = capsys.readouterr().out
    assert "layer layer3: (2, 256, 4, 4) from NCHW" in text
    # layer4: three convolutions and a fourth on the shortcut, five BatchNorms of weight and bias, and the classifier.
    above, of = map(int, re.search(r"(\d+) of (\d+) above", text).groups())
    assert of == 17
    assert above >= 15
    assert "no problem found" in text


@pytest.mark.parametrize("model", ["mobilenet_v3_small", "some_networks:with_hardsigmoid"])
def test_hardsigmoid_is_replaced_and_the_report_says_how_to_do_so_in_a_training_loop(model, monkeypatch, capsys):
    if ":" not in model:
        pytest.importorskip("torchvision", reason="torchvision is not installed")
        pytest.importorskip("timm", reason="timm is not installed")
    networks = sys.modules["some_networks"]
    monkeypatch.setattr(networks, "with_hardsigmoid", lambda: SmallNet(act=nn.Hardsigmoid), raising=False)
    layer = "middle" if ":" in model else "features.8"
    assert main(["doctor", model, "--size", "64", "--layer", layer]) == 0
    text = capsys.readouterr().out
    assert re.search(r"\d+ Hardsigmoid of .* are replaced by a twice differentiable equivalent", text)
    assert "pal-fast train does it too; in a loop of your own call pal_fast.nn.replace_hardsigmoid(model)" in text
    assert "no problem found" in text


NETWORK = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 30 * 30, 5))
"""


def test_the_installed_command_finds_a_module_in_the_working_directory(tmp_path):
    """For a console script, sys.path starts with the script's folder and not the working directory."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "pal-fast"
    script.write_text("import sys\nfrom pal_fast.cli import main\nsys.exit(main())\n")
    (tmp_path / "mynet.py").write_text(NETWORK)
    words = [sys.executable, str(script), "doctor", "mynet:build", "--size", "32"]
    home = str(Path(pal_fast.__file__).parents[1])
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": home}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "mynet:build: layers with a map" in done.stdout
    absent = subprocess.run(
        [*words[:3], "absent:build"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": home},
        check=False,
    )
    assert absent.returncode == 2
    assert f"model 'absent:build': there is no module 'absent' in {tmp_path} or among those installed" in absent.stderr


@pytest.mark.parametrize("model", ["fcn_resnet50", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_no_weights_are_downloaded_for_a_model_with_a_backbone(model, monkeypatch):
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    pytest.importorskip("timm", reason="timm is not installed")

    def fetch(*given, **more):
        raise AssertionError("the doctor fetches nothing")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    assert any(parameter.requires_grad for parameter in build(model, 7, 64).parameters())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["some_networks:small", "--layer", "midle"], "did you mean 'middle'"),
        (["some_networks:number"], "not a torch.nn.Module"),
        (["some_networks:smal"], "some_networks has no 'smal'"),
        (["resnett18"], "did you mean"),
    ],
)
def test_a_user_error_is_reported_in_one_line(arguments, words, capsys):
    if ":" not in arguments[0]:
        pytest.importorskip("torchvision", reason="torchvision is not installed")
        pytest.importorskip("timm", reason="timm is not installed")
    assert main(["doctor", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


class FixedSize(SmallNet):
    """Takes images of one size only, as torchvision's ViT does."""

    def forward(self, images):
        torch._assert(images.shape[2] == 32, f"Wrong image height! Expected 32 but got {images.shape[2]}!")
        return super().forward(images)


@pytest.mark.parametrize("layer", [[], ["--layer", "middle"]])
def test_a_size_that_the_model_rejects_is_reported_in_one_line(layer, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["some_networks"], "small", FixedSize)
    assert main(["doctor", "some_networks:small", "--size", "64", *layer]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "some_networks:small does not run on images of 64 x 64 (--size): Wrong image height!" in printed.err


@pytest.mark.parametrize("option", ["--size", "--batch", "--classes"])
@pytest.mark.parametrize("number", ["0", "-3", "1.5"])
def test_counts_must_be_at_least_one(option, number, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "some_networks:small", option, number])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"argument {option}: must be a whole number of at least 1, got '{number}'" in printed.err


@pytest.mark.parametrize(("name", "layer"), [("small", "body"), ("timm:resnet18", "layer3"), ("resnet18", "layer3")])
def test_doctor_takes_the_same_model_names_as_training(name, layer, capsys):
    if name != "small":
        pytest.importorskip("torchvision", reason="torchvision is not installed")
        pytest.importorskip("timm", reason="timm is not installed")
    assert main(["doctor", name, "--size", "64", "--layer", layer]) == 0
    assert f"layer {layer}: (2, " in capsys.readouterr().out


def test_a_problem_shows_in_the_exit_status(monkeypatch, capsys):
    frozen = SmallNet()
    frozen.requires_grad_(False)
    frozen.classifier.bias.requires_grad_(True)
    monkeypatch.setattr(sys.modules["some_networks"], "small", lambda: frozen)
    assert main(["doctor", "some_networks:small", "--size", "32", "--layer", "middle"]) == 1
    assert "PROBLEM" in capsys.readouterr().out


def test_candidates_include_token_layers_and_leave_the_model_unchanged():
    model = Tokens().train()
    found = {c.name: c for c in candidates(model, torch.randn(2, 3, 16, 16))}
    assert found["blocks.1"].shape == (2, 16, 4, 4)
    assert found["blocks.1"].layout == "tokens, 1 + 4 x 4"
    assert found["blocks.0"].share_above > found["blocks.2"].share_above
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())


def test_every_layer_that_the_doctor_lists_can_be_attributed():
    model = SmallNet(norm=lambda c: nn.GroupNorm(1, c))
    images = torch.randn(2, 3, 32, 32)
    for candidate in candidates(model, images):
        with pal_fast.PALLoss(model, candidate.name) as pal:
            assert pal.check(images).problems == []


def listed(capsys, *arguments):
    """The names of the layers that `doctor` lists, and its whole output."""
    assert main(["doctor", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    return [line.split()[0] for line in lines if line.startswith("  ")][1:], "\n".join(lines)


def test_layers_without_gradient_are_left_out_and_named(monkeypatch, capsys):
    """After the last attention of a ViT that pools its class token, the patch tokens do not reach the logits."""
    monkeypatch.setattr(sys.modules["some_networks"], "small", Tokens)
    names, text = listed(capsys, "some_networks:small", "--size", "16")
    assert {"patches", "blocks.0", "blocks.1"} <= set(names)
    left_out = re.search(r"exactly zero in their maps: (.*) \(", text)[1].split(", ")
    assert {"blocks.2", "norm"} <= set(left_out)
    assert not set(left_out) & set(names)
    model, images = Tokens(), torch.randn(2, 3, 16, 16)
    for name in left_out + names:
        with pal_fast.PALLoss(model, name) as pal:
            refused = any("is zero everywhere" in problem for problem in pal.check(images).problems)
        assert refused == (name in left_out), name


def test_mean_pooling_leaves_no_layer_out(monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["some_networks"], "small", lambda: Tokens(pool="mean"))
    names, text = listed(capsys, "some_networks:small", "--size", "16")
    assert {"blocks.2", "norm"} <= set(names)
    assert "Left out" not in text


def test_a_branch_that_does_not_lead_to_the_logits_is_left_out(monkeypatch, capsys):
    class Branching(SmallNet):
        def forward(self, images):
            x = self.middle(self.stem(images))
            self.top(x)
            return self.classifier(nn.functional.pad(x.mean((2, 3)), (0, 2)))

    monkeypatch.setattr(sys.modules["some_networks"], "small", Branching)
    names, text = listed(capsys, "some_networks:small", "--size", "32")
    assert "middle" in names
    assert "in their maps: top.0, top.1, top.2, top (" in text


def test_where_no_layer_has_a_gradient_all_are_listed_with_the_reason(monkeypatch, capsys):
    def untrained():
        model = SmallNet()
        nn.init.zeros_(model.classifier.weight)
        return model

    monkeypatch.setattr(sys.modules["some_networks"], "small", untrained)
    names, text = listed(capsys, "some_networks:small", "--size", "32")
    assert {"stem", "middle", "top"} <= set(names)
    assert "the gradient of the logits is exactly zero in all of these maps" in text


@pytest.mark.parametrize("returned", [lambda logits: {"out": logits, "aux": logits * 2}, lambda logits: [{"a": 1}]])
def test_where_there_are_no_logits_to_differentiate_all_layers_are_listed(returned, monkeypatch, capsys):
    class Other(Tokens):
        def forward(self, images):
            return returned(super().forward(images))

    monkeypatch.setattr(sys.modules["some_networks"], "small", Other)
    names, text = listed(capsys, "some_networks:small", "--size", "16")
    assert {"blocks.1", "blocks.2", "norm"} <= set(names)
    assert "Left out" not in text


def test_layers_of_frozen_models_and_of_models_that_start_in_place_are_listed():
    model = nn.Sequential(nn.ReLU(inplace=True), SmallNet()).requires_grad_(False)
    images = torch.randn(2, 3, 32, 32)
    kept = images.clone()
    found = candidates(model, images.relu())
    assert all(candidate.reached for candidate in found)
    assert {"1.stem", "1.middle", "1.top"} <= {candidate.name for candidate in found}
    assert torch.equal(images, kept)
    assert all(parameter.grad is None for parameter in model.parameters())

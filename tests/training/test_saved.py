"""After training, evaluation, the saved weights and the exported program contain nothing of the loss."""

from __future__ import annotations

import functools
import itertools
import json

import pytest

pytest.importorskip("accelerate", reason="accelerate is not installed (extra train)")

import numpy as np
import torch
from support.small_training import SMALL, quiet

from pal_fast import cli
from pal_fast.data import open_dataset
from pal_fast.landmarks import write_landmarks
from pal_fast.training import TrainingConfig, train
from pal_fast.training.exporting import DESCRIPTION, _run_onnx, export
from pal_fast.training.initial_weights import Loaded, load_weights
from pal_fast.training.loading import open_split
from pal_fast.training.networks import build_network
from pal_fast.training.run_folder import RunFolder, read_state
from pal_fast.training.trained import evaluate, load_network, table


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a run with the loss and of a baseline."""
    folder = tmp_path_factory.mktemp("runs")
    for name, weight in (("pal", 1.0), ("plain", 0.0)):
        config = TrainingConfig(**SMALL, weight=weight, prepare_head=bool(weight))
        train(config, folder / name, say=quiet)
    return folder


@pytest.fixture
def plain_network():
    """The network as its library builds it."""
    return build_network("small", 7, 32)


def test_weights_have_the_keys_of_the_plain_network(runs, plain_network):
    with_loss, without = (read_state(RunFolder(runs / name).model, "model") for name in ("pal", "plain"))
    assert list(with_loss["network"]) == list(without["network"]) == list(plain_network.state_dict())
    network = load_network(runs / "pal").network
    assert [type(module) for module in network.modules()] == [type(module) for module in plain_network.modules()]
    for module in network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks


def test_a_run_can_start_from_the_weights_of_another(runs, plain_network):
    ended = read_state(RunFolder(runs / "plain").model, "model")["network"]
    for weights in (runs / "plain", RunFolder(runs / "plain").model):
        begun = build_network("small", 7, 32)
        assert load_weights(begun, weights) == Loaded(len(ended), len(ended), (), ())
        assert all(torch.equal(value, ended[name]) for name, value in begun.state_dict().items())


def test_the_exported_program_is_the_plain_network(runs, plain_network, tmp_path, generator):
    description = export(runs / "pal", tmp_path / "model.pt2")
    assert description["difference"] < 1e-5
    files = {DESCRIPTION: ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=files)
    assert json.loads(files[DESCRIPTION]) == {
        name: value for name, value in description.items() if name != "difference"
    }
    assert "surprise" in description["classes"]

    plain_network.load_state_dict(read_state(RunFolder(runs / "pal").model, "model")["network"])
    plain_network.eval()
    assert sorted(program.state_dict) == sorted(plain_network.state_dict())
    assert "pal" not in str(program.graph).replace("pal_network", "")
    for count in (1, 5):  # the batch size is dynamic
        images = torch.randn(count, 3, 32, 32, generator=generator)
        torch.testing.assert_close(program.module()(images), plain_network(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_an_export_reproduces_the_runs_predictions_with_its_stated_normalisation(runs, tmp_path, format):
    """Uses only the exported file and test images in [0, 1]."""
    if format == "onnx":
        onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")
        pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra onnx)")
    export(runs / "pal", tmp_path / "model", format=format)
    images = torch.stack([sample["image"] for sample in open_dataset("drawn", SMALL["root"], "test")])
    if format == "torch":
        files = {DESCRIPTION: ""}
        program = torch.export.load(tmp_path / "model", extra_files=files).module()
        description = json.loads(files[DESCRIPTION])
    else:
        content = (tmp_path / "model").read_bytes()
        kept = {entry.key: entry.value for entry in onnx.load_from_string(content).metadata_props}
        description = {name: json.loads(kept[f"pal_fast.{name}"]) for name in ("mean", "std", "size", "channels")}
        program = functools.partial(_run_onnx, content)
    assert images.shape[1:] == (3, description["size"], description["size"])
    assert description["channels"] == "RGB in [0, 1], then (value - mean) / std"
    mean, std = (torch.tensor(description[name])[:, None, None] for name in ("mean", "std"))
    predictions = program((images - mean) / std).argmax(1)
    assert predictions.tolist() == np.load(RunFolder(runs / "pal").predictions)["predictions"].tolist()


def folded(network):
    """The network's tensors, and its convolutions' weights and biases with the batch norms after them folded in."""
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    found = list(network.state_dict().values())
    modules = list(network.modules())
    for conv, norm in itertools.pairwise(modules):
        if isinstance(conv, torch.nn.Conv2d) and isinstance(norm, torch.nn.BatchNorm2d):
            found += fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
    return found


def test_onnx_holds_only_the_plain_network_and_returns_the_same_logits(runs, plain_network, tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra onnx)")
    assert export(runs / "pal", tmp_path / "model.onnx", format="onnx")["difference"] < 1e-4
    import onnx

    model = onnx.load(tmp_path / "model.onnx")
    assert [given.name for given in model.graph.input] == ["images"]
    assert [made.name for made in model.graph.output] == ["logits"]
    assert {opset.domain for opset in model.opset_import} <= {"", "ai.onnx"}
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert not model.functions
    plain_network.load_state_dict(read_state(RunFolder(runs / "pal").model, "model")["network"])
    stored = [torch.from_numpy(onnx.numpy_helper.to_array(one).copy()) for one in model.graph.initializer]
    state = folded(plain_network)
    for value in stored:
        if value.is_floating_point() and value.ndim:
            near = [own for own in state if own.shape == value.shape and torch.allclose(own, value, atol=1e-6)]
            assert near, f"a tensor {tuple(value.shape)} that is none of the network's"
    for name in ("head.5.weight", "head.5.bias"):
        assert any(torch.equal(plain_network.state_dict()[name], value) for value in stored)


@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_an_export_that_returns_nan_is_refused(runs, tmp_path, monkeypatch, format):
    if format == "onnx":
        pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")
        pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra onnx)")
    answer = torch.full((3, 7), torch.nan)
    monkeypatch.setattr(f"pal_fast.training.exporting._run_{format}", lambda content, images: answer)
    with pytest.raises(RuntimeError, match="logits differ by nan"):
        export(runs / "pal", tmp_path / "model", format=format)
    assert not list(tmp_path.iterdir())


def test_without_onnx_the_error_names_the_extra(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pal_fast\[onnx\]"):
        export(runs / "pal", tmp_path / "model.onnx", format="onnx")
    assert not list(tmp_path.iterdir())


def test_evaluation_reproduces_the_final_figures_without_landmarks(runs, monkeypatch):
    final = json.loads(RunFolder(runs / "pal").result.read_text())
    with monkeypatch.context() as patch:
        patch.setattr("pal_fast.training.evaluation.attribute", None)
        patch.setattr("pal_fast.training.evaluation.landmark_heatmap", None)
        found = evaluate(runs / "pal", workers=0, device="cpu", batch=16, say=quiet)
    assert found.confusion.tolist() == final["confusion"]
    assert found.cross_entropy == pytest.approx(final["cross_entropy"])
    assert found.alignment == {}
    assert found.image_alignment is None
    found = evaluate(runs / "pal", workers=0, device="cpu", batch=16, alignment=True, say=quiet)
    assert found.alignment["body"]["pearson"] == pytest.approx(final["alignment"]["body"]["pearson"])
    assert 0 < np.isfinite(found.image_alignment).sum() == 28 - found.undefined["body"]


def test_a_named_landmark_format_is_used_in_training_and_evaluation(runs, tmp_path, capsys):
    """Files of x-y lines are read where the format is named, in the config or on the command line."""
    for split in ("train", "test"):
        faces = open_dataset("drawn", SMALL["root"], split)
        write_landmarks(tmp_path / "marks", faces.landmark_set(), "x-y")
    config = TrainingConfig(**SMALL, landmarks=str(tmp_path / "marks"), format="x-y")
    torch.testing.assert_close(open_split(config, "test", transform=None).landmarks, faces.landmarks, rtol=0, atol=1e-5)
    command = ["evaluate", str(runs / "pal"), "--landmarks", str(tmp_path / "marks"), "--workers", "0"]
    assert cli.main(command) == 2
    assert "name the format" in capsys.readouterr().err
    assert cli.main([*command, "--format", "x-y"]) == 0
    assert "alignment at body: " in capsys.readouterr().out


def test_a_checkpoint_and_other_data_can_be_evaluated(runs):
    checkpoint = RunFolder(runs / "pal").checkpoint
    other = evaluate(checkpoint, root="count=8,test_count=14,size=48", workers=0, device="cpu", say=quiet)
    assert other.confusion.sum() == 14
    text = table(other)
    assert f"{100 * other.accuracy:.2f} %" in text
    assert all(name in text for name in other.classes)


def test_inputs_that_cannot_be_evaluated_are_refused_by_name(runs, tmp_path, capsys):
    for words, expected in (
        ([str(tmp_path)], "holds no model.pt, so it is not a run"),
        ([str(tmp_path / "absent")], "there is no file or folder"),
        ([str(runs / "pal"), "--data", "rafdb"], "root is required: the folder of rafdb"),
        ([str(runs / "pal"), "--split", "tset"], "did you mean 'test'"),
    ):
        assert cli.main(["evaluate", *words]) == 2
        assert expected in capsys.readouterr().err


def test_the_commands_print_their_results_and_write_their_files(runs, tmp_path, capsys):
    words = ["--workers", "0", "--device", "cpu", "-o", str(tmp_path / "figures.json")]
    assert cli.main(["evaluate", str(runs / "plain"), *words]) == 0
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert f"{100 * figures['accuracy']:.2f} %" in printed
    assert cli.main(["export", str(runs / "plain"), "-o", str(tmp_path / "model.pt2")]) == 0
    stdout = capsys.readouterr().out
    assert "images (B, 3, 32, 32) to logits of 7 classes" in stdout
    assert "already normalised per channel: (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]" in stdout
    assert (tmp_path / "model.pt2").exists()

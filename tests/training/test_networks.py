"""Networks by name and the sources of their weights, with messages about which weights are loaded."""

from __future__ import annotations

import re
import urllib.error

import pytest

pytest.importorskip("accelerate", reason="accelerate is not installed (extra train)")

import torch
from support.small_training import SMALL, quiet

from pal_fast.capture.layer_names import find_layers
from pal_fast.training import TrainingConfig, train
from pal_fast.training.initial_weights import begin
from pal_fast.training.networks import DEFAULT_LAYERS, build_network, find_library
from pal_fast.training.run_folder import RunFolder

#: One network for each entry of DEFAULT_LAYERS.
ONE_OF_EACH_KIND = (
    "small",
    "resnet18",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "densenet121",
    "convnext_tiny",
    "efficientnet_b0",
    "timm:resnet18",
    "resnet10t",
    "timm:resnetv2_18",
    "timm:resnet50_clip.openai",
    "resnet50_mlp",
    "resnext26ts",
    "resnet51q",
    "timm:resnext50_32x4d",
    "timm:wide_resnet50_2",
    "timm:densenet121",
    "timm:convnext_tiny",
    "convnextv2_atto",
    "timm:efficientnet_b0",
)


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_the_default_layer_exists_in_each_librarys_network(name):
    """On the meta device: the layer has a sixteenth of the image's side and several channels, and the logits follow."""
    (layer,) = TrainingConfig(data="drawn", model=name).resolved().layer
    shapes = []
    with torch.device("meta"), torch.no_grad():
        network = build_network(name, 7, 64)
        ((found, module),) = find_layers(network, [layer]).items()
        module.register_forward_hook(lambda module, given, output: shapes.append(tuple(output.shape)))
        logits = network.eval()(torch.zeros(2, 3, 64, 64))
    assert found == layer
    ((count, channels, height, width),) = shapes
    assert (count, height, width) == ((2, 16, 16) if name == "small" else (2, 4, 4))
    assert channels >= 48
    assert logits.shape == (2, 7)


def test_every_default_layer_pattern_has_a_network_under_test():
    used = set()
    for name in ONE_OF_EACH_KIND:
        if name != "small":
            library, plain = find_library(name)
            plain = plain.partition(".")[0]
            used.add((library, next(pattern for pattern in DEFAULT_LAYERS[library] if re.match(pattern, plain))))
    assert used == {(library, pattern) for library, known in DEFAULT_LAYERS.items() for pattern in known}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch.hub cache."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def test_torchvision_takes_precedence_and_a_prefix_selects_the_library():
    assert find_library("resnet18") == ("torchvision", "resnet18")
    assert find_library("timm:resnet18") == ("timm", "resnet18")
    assert find_library("resnet10t") == ("timm", "resnet10t")
    for name, expected in (
        ("resnet81", "did you mean"),
        ("keras:vgg", "timm:NAME"),
        ("fasterrcnn_resnet50_fpn", "neither"),
    ):
        with pytest.raises(ValueError, match=expected):
            find_library(name)


@pytest.mark.parametrize(
    "name", ["small", "mobilenet_v3_small", "googlenet", "timm:resnet10t", "timm:vit_tiny_patch16_224"]
)
def test_a_network_has_a_head_for_the_requested_number_of_classes(name):
    network = build_network(name, 5, 64).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 5)


def test_pretrained_auto_reports_missing_weights_and_loads_cached_ones(hub):
    missing = begin("resnet18", 7, 64, pretrained="auto")
    assert not missing.pretrained
    assert missing.loaded is None
    assert "are not on this machine: no file" in missing.source
    file = missing.source.rpartition("no file ")[2].rstrip(")")
    hub.mkdir(parents=True)
    state = build_network("resnet18", 1000, 64).state_dict()
    torch.save(state, file)
    found = begin("resnet18", 7, 64, pretrained="auto")
    assert found.pretrained
    assert file in found.source
    assert found.loaded is not None
    assert (found.loaded.misshapen, found.loaded.missing) == (("fc.weight", "fc.bias"), ())
    assert "of another shape and left out: fc.weight, fc.bias" in str(found)
    own = found.network.state_dict()
    assert all(torch.equal(own[name], state[name]) for name in state if not name.startswith("fc."))


def test_pretrained_yes_without_network_access_names_the_file_and_where_to_put_it(hub, monkeypatch):
    import torchvision.models._api as api

    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(api, "load_state_dict_from_url", unreachable)
    with pytest.raises(OSError, match=r"put that file at .*hub/checkpoints/resnet18-"):
        begin("resnet18", 7, 64, pretrained="yes")
    with pytest.raises(ValueError, match="'small' has no pretrained weights"):
        begin("small", 7, 64, pretrained="yes")


def test_timm_weights_are_loaded_from_the_hugging_face_cache(tmp_path, monkeypatch):
    asked = []
    cached: list[str] = []

    def cache(repository, file):
        asked.append((repository, file))
        return cached[0] if cached and file == "model.safetensors" else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cache)
    missing = begin("timm:resnet10t", 7, 64, pretrained="auto")
    assert "is not in this machine's hub cache" in missing.source
    assert {repository.partition("/")[0] for repository, _ in asked} == {"timm"}
    save_file = pytest.importorskip("safetensors.torch").save_file
    state = build_network("timm:resnet10t", 1000, 64).state_dict()
    cached.append(str(tmp_path / "model.safetensors"))
    save_file(state, cached[0])
    found = begin("timm:resnet10t", 7, 64, pretrained="auto")
    assert found.pretrained
    assert torch.equal(found.network.state_dict()["conv1.0.weight"], state["conv1.0.weight"])


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": {f"module.{n}": v for n, v in s.items()}, "epoch": 3}]
)
def test_a_users_own_weight_file_is_unwrapped(tmp_path, wrap):
    state = build_network("small", 9, 32).state_dict()
    torch.save(wrap(state), tmp_path / "own.pth")
    found = begin("small", 7, 32, weights=str(tmp_path / "own.pth"))
    assert "left out: head.5.weight, head.5.bias" in str(found)
    assert torch.equal(found.network.state_dict()["body.0.weight"], state["body.0.weight"])


def test_a_weight_file_that_does_not_match_the_network_is_refused(tmp_path):
    torch.save({"encoder.weight": torch.zeros(3, 3)}, tmp_path / "other.pt")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, expected in (
        ("other", "nothing in .* matches the network"),
        ("junk", "not a readable"),
        ("list", "no state_dict"),
    ):
        with pytest.raises(ValueError, match=rf"weights: .*{expected}|weights: {expected}"):
            begin("small", 7, 32, weights=str(tmp_path / f"{name}.pt"))
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        begin("small", 7, 32, weights=str(tmp_path / "absent.pt"))


def test_a_resumed_run_keeps_the_weights_that_auto_found(tmp_path):
    config = TrainingConfig(**SMALL | {"epochs": 1, "gallery": 0}, weight=0)
    train(config, tmp_path / "run", say=quiet)
    folder = RunFolder(tmp_path / "run")
    assert folder.read_json(folder.config)["pretrained"] == "no"
    folder.result.unlink()
    lines: list[str] = []
    train(config, tmp_path / "run", say=lines.append)  # "auto" still, and the same run
    assert lines[0] == "resuming after epoch 1"

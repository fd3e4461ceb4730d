"""The config: validated, saved and read back unchanged, and consistent with the command line's options."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields

import pytest

from pal_fast.training.arguments import add_options, config_from, default_name
from pal_fast.training.config import TrainingConfig, read_config


def from_command_line(*words: str) -> TrainingConfig:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return config_from(parser.parse_args(words))


def test_a_config_is_read_back_from_its_file_unchanged(tmp_path):
    config = TrainingConfig(
        data="rafdb",
        root="somewhere",
        layer=("layer2", "layer3"),
        channel_count=0.25,
        regions=("eyes=2", "mouth"),
        weight=0,
        sigma=4,
    )
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_mapping()))
    assert TrainingConfig.from_mapping(read_config(path)) == config
    assert config.region_choice() == {"eyes": 2.0, "mouth": 1.0}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the standard library reads TOML from Python 3.11 on")
def test_toml_is_read_and_the_command_line_overrides_it(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('data = "drawn"\nmodel = "small"\nlayer = ["body"]\nepochs = 3\nchannel_count = 12\n')
    config = from_command_line("--config", str(path), "--epochs", "5", "--no-augment")
    assert (config.layer, config.epochs, config.augment, config.channel_count) == (("body",), 5, False, 12)


def test_every_option_is_on_the_command_line():
    config = from_command_line(
        "--data", "folder", "--layer", "a", "b", "--channel-count", "0.5", "--no-absolute", "--weight", "0.1"
    )
    assert config.layer == ("a", "b")
    assert config.channel_count == 0.5
    assert config.absolute is False
    parser = argparse.ArgumentParser()
    add_options(parser)
    flags = parser.format_help()
    for entry in fields(TrainingConfig):
        assert f"--{entry.name.replace('_', '-')}" in flags


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"data": "rafbd"}, "did you mean 'rafdb'"),
        ({"data": "drawn", "attribution": "gradinput"}, "did you mean 'grad_input'"),
        ({"data": "drawn", "epoch": 3}, "did you mean 'epochs'"),
        ({"data": "drawn", "epochs": 2.5}, "epochs must be a whole number"),
        ({"data": "drawn", "epochs": 0}, "epochs must be positive"),
        ({"data": "drawn", "weight": -1}, "weight must be 0 or more"),
        ({"data": "drawn", "weight": float("nan")}, "weight must be finite"),
        ({"data": "drawn", "layer": "body"}, "layer must be a list"),
        ({"data": "drawn", "batch": 30, "accumulate": 4}, "batch=30 must be a multiple of accumulate=4"),
        ({"data": "drawn", "channel_count": 1.5}, "channel_count as a fraction"),
        ({"data": "drawn", "regions": ["eye"]}, "did you mean 'eyes'"),
        ({"data": "drawn", "regions": ["eyes=much"]}, "got 'eyes=much'"),
        ({"data": "drawn", "augment": 1}, "augment must be true or false"),
        ({"data": "drawn", "pretrained": "yes", "weights": "a.pt"}, "give one of them"),
        ({"data": "folder", "landmarks": "m", "format": "xy"}, "did you mean 'x-y'"),
        ({"data": "folder", "format": "x-y"}, "format applies to the landmarks' file"),
        ({}, "data must be one of"),
    ],
)
def test_a_bad_value_is_refused_naming_the_option_and_the_file(values, named):
    with pytest.raises((ValueError, TypeError)) as error:
        TrainingConfig.from_mapping(values, "some.json")
    assert str(error.value).startswith("some.json: ")
    assert named in str(error.value)


@pytest.mark.parametrize("text", ["{", "[1]", "data = 3"])
def test_a_file_that_is_not_a_config_is_named_in_the_error(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        read_config(path)


def test_defaults_that_depend_on_other_options_are_resolved():
    resolved = TrainingConfig(data="affectnet", model="resnet18").resolved()
    assert (resolved.layer, resolved.balanced, resolved.size) == (("layer3",), "yes", 224)
    resolved = TrainingConfig(data="drawn", model="small").resolved()
    assert (resolved.layer, resolved.balanced, resolved.size) == (("body",), "no", 48)
    assert resolved == resolved.resolved()
    with pytest.raises(ValueError, match="layer must be named for model 'alexnet'"):
        TrainingConfig(data="drawn", model="alexnet").resolved()
    assert TrainingConfig(data="drawn", model="alexnet", weight=0).resolved().layer == ()


def test_a_run_folder_is_named_after_the_options_that_differ():
    names = {
        default_name(TrainingConfig(data="rafdb", **options).resolved())
        for options in ({}, {"weight": 0}, {"weight": 0.1}, {"channels": "half"}, {"seed": 1}, {"layer": ["layer2"]})
    }
    assert len(names) == 6
    assert "rafdb-resnet50-baseline-seed0" in names


def test_the_help_of_an_option_with_a_default_states_it():
    parser = argparse.ArgumentParser()
    add_options(parser)
    stated = {action.dest.removeprefix("option_"): action.help or "" for action in parser._actions}
    for field in fields(TrainingConfig):
        if isinstance(field.default, (str, int, float)) and not isinstance(field.default, bool):
            assert stated[field.name].endswith(f"(default {field.default})"), field.name


def test_the_mapping_holds_plain_values():
    mapping = TrainingConfig(data="drawn").to_mapping()
    assert json.loads(json.dumps(mapping)) == mapping

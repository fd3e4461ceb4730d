"""The command line: help, versions and one-line errors."""

from __future__ import annotations

import pytest

import pal_fast
from pal_fast import cli


def test_every_command_has_a_help_line_and_parses_its_own_help(capsys):
    for command in cli.commands():
        assert command.HELP[0].islower(), f"{command.NAME}: help reads as a phrase"
        with pytest.raises(SystemExit) as stop:
            cli.main([command.NAME, "--help"])
        assert stop.value.code == 0
        assert f"pal-fast {command.NAME}" in capsys.readouterr().out


def test_every_command_with_an_output_takes_its_short_form():
    (subparsers,) = (action for action in cli.build_parser()._actions if action.dest == "command")
    outputs = [
        action.option_strings
        for parser in subparsers.choices.values()
        for action in parser._actions
        if "--output" in action.option_strings
    ]
    assert len(outputs) >= 10
    assert outputs == [["-o", "--output"]] * len(outputs)


def test_info_lists_every_backend_and_why_it_cannot_run(capsys):
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    assert pal_fast.__version__ in printed
    for name, status in pal_fast.backends().items():
        line = next(line for line in printed.splitlines() if line.split()[:1] == [name])
        assert status.detail in line
        assert status.detail, f"{name} gives no detail"


def test_an_unknown_command_is_refused_listing_the_known_ones(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["exlpain"])
    assert stop.value.code == 2
    assert "explain" in capsys.readouterr().err


def test_an_unknown_option_is_refused_showing_the_commands_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor", "resnet18", "--clases", "7"])
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("usage: pal-fast doctor ")
    assert "unrecognized arguments: --clases 7; did you mean '--classes'?" in printed
    for arguments in (["info", "more"], ["doctor", "resnet18", "-z"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 2
        assert capsys.readouterr().err.startswith(f"usage: pal-fast {arguments[0]} ")

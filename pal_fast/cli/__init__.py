"""The command `pal-fast`: one module per subcommand, found by listing this package.

A command module has NAME, HELP, `add_arguments(parser)` and `run(args) -> int`, and imports heavy dependencies
inside `run`.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from pal_fast._version import __version__
from pal_fast.messages import near


def commands() -> list[Any]:
    """The command modules in alphabetical order."""
    return [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pal-fast", description="Privileged Attribution Loss: make a network look where it should."
    )
    parser.add_argument("--version", action="version", version=f"pal_fast {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in commands():
        subparser = subparsers.add_parser(command.NAME, help=command.HELP, description=command.HELP)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run, parser=subparser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. An error that the user can fix prints one line, without a traceback, and returns status 2."""
    args, unknown = build_parser().parse_known_args(arguments)
    if unknown:
        _refuse(args.parser, unknown)
    try:
        status: int = args.run(args)
        return status
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print(f"pal-fast {args.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"pal-fast {args.command}: interrupted", file=sys.stderr)
        return 130


def _refuse(parser: argparse.ArgumentParser, unknown: list[str]) -> NoReturn:
    """Exits as argparse does, but with the usage of the subcommand that was given the unknown arguments."""
    known = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    options = [argument.partition("=")[0] for argument in unknown if argument.startswith("--")]
    parser.error(f"unrecognized arguments: {' '.join(unknown)}{near(options[0], known, 1, 0.7) if options else ''}")


def check_output(path: str | Path, *endings: str, makes_folder: bool = False) -> None:
    """Checks, before any work is done, that `path`, given as --output, has one of `endings` and can be written.

    Raises: ValueError for another ending, OSError if nothing can be written there.
    """
    from pal_fast.files import check_writable

    if endings and Path(path).suffix.lower() not in endings:
        raise ValueError(f"--output must end in {' or '.join(endings)}, got {str(path)!r}")
    check_writable(path, makes_folder=makes_folder)


def count(text: str) -> int:
    """An argument that is a whole number of at least 1."""
    if not text.strip().lstrip("+").isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def shard_of(text: str) -> tuple[int, int]:
    """(i, n) of "i/n", given as --shard. Raises: ValueError unless i is from 1 to n."""
    index, _, number = text.partition("/")
    if not (index.isdecimal() and number.isdecimal() and 1 <= int(index) <= int(number)):
        raise ValueError(f"--shard must be i/n with i from 1 to n, such as 2/8, got {text!r}")
    return int(index), int(number)

"""Command-line options of a `TrainingConfig`, generated from its fields, so that they cannot diverge from it."""

from __future__ import annotations

import argparse
from dataclasses import MISSING
from typing import Any

from pal_fast.training.config import TrainingConfig, option_fields, read_config

_GROUPS = {
    "data": "data",
    "network": "network",
    "loss": "loss (options of pal_fast.PALLoss)",
    "training": "training",
    None: "records",
}


def add_options(parser: argparse.ArgumentParser, leave_out: tuple[str, ...] = ()) -> None:
    """Adds --config and an option for every field except those in `leave_out`. Read them with `config_from`."""
    parser.add_argument(
        "--config", metavar="FILE", help="options from a .json or .toml file; options given here override it"
    )
    groups = {key: parser.add_argument_group(title) for key, title in _GROUPS.items()}
    for name, (entry, kinds) in option_fields().items():
        if name in leave_out:
            continue
        meta = entry.metadata
        text = meta["help"]
        if entry.default not in (MISSING, None, ()) and bool not in kinds:
            text += f" (default {entry.default})"
        keywords: dict[str, Any] = {"dest": f"option_{name}", "default": argparse.SUPPRESS, "help": text}
        if bool in kinds:
            keywords |= {"action": argparse.BooleanOptionalAction}
        else:
            keywords |= {"choices": meta.get("choices")}
            if not meta.get("choices"):
                keywords |= {"metavar": meta.get("metavar", "NAME")}
            if tuple in kinds:
                keywords |= {"nargs": "+", "metavar": name.upper()}
            elif int in kinds and float in kinds:
                keywords |= {"type": _count_or_fraction, "metavar": "N"}
            elif int in kinds:
                keywords |= {"type": int, "metavar": meta.get("metavar", "N")}
            elif float in kinds:
                keywords |= {"type": float, "metavar": "X"}
        groups[meta.get("group")].add_argument(f"--{name.replace('_', '-')}", **keywords)


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options given on the command line, by their names in the config."""
    return {name.removeprefix("option_"): value for name, value in vars(args).items() if name.startswith("option_")}


def config_from(args: argparse.Namespace) -> TrainingConfig:
    """The config from --config and the command line.

    Raises: ValueError, TypeError, OSError naming the option or the file.
    """
    values = read_config(args.config) if args.config else {}
    source = f"{args.config} and the command line" if args.config else "command line"
    return TrainingConfig.from_mapping(values | given_options(args), source)


def default_name(config: TrainingConfig) -> str:
    """A folder name built from the options in which runs usually differ."""
    parts = [config.data, config.model.replace(":", "_")]
    if config.weight:
        parts += ["+".join(config.layer), config.attribution, config.channels, f"w{config.weight:g}"]
    else:
        parts += ["baseline"]
    return "-".join([*parts, f"seed{config.seed}"])


def _count_or_fraction(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)

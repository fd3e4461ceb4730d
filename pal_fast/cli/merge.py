"""`pal-fast merge landmarks.shard-*.npz -o landmarks.npz`: joins the shards of an extraction."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from pal_fast.cli import check_output

NAME = "merge"
HELP = "join landmark files, such as the shards of an extraction, into one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", help=".npz files of pal-fast landmarks")
    parser.add_argument("-o", "--output", required=True, help="the .npz to write")
    parser.add_argument(
        "--overlap", action="store_true", help="allow images in several files; the last file given wins"
    )


def run(args: argparse.Namespace) -> int:
    from pal_fast.landmarks import merge
    from pal_fast.landmarks.landmark_set import load_npz

    check_output(args.output, ".npz")
    check_shards(args.files)
    sets = [load_npz(path) for path in args.files]
    settings = common_settings(args.files)
    merged = merge(sets, overlap=args.overlap)
    merged.save(args.output, settings=settings)
    faceless = int((~merged.found).sum())
    print(f"{args.output}: {len(merged)} images of {len(args.files)} files, {faceless} of them without a face")
    return 0


def common_settings(files: Sequence[str]) -> str:
    """The settings that all these landmarks were made with; "" if no file records any. Raises: ValueError if they
    differ."""
    from pal_fast.landmarks.landmark_set import read_settings

    files_by_settings: dict[str, list[str]] = {}
    for file in files:
        files_by_settings.setdefault(read_settings(file), []).append(file)
    if len(files_by_settings) > 1:
        ways = [
            f"{len(of)} with {how or 'settings not recorded'}, such as {of[0]}" for how, of in files_by_settings.items()
        ]
        raise ValueError(
            f"files must hold landmarks made with the same settings, got {'; '.join(ways)} "
            "(pal_fast.landmarks.merge joins any)"
        )
    return next(iter(files_by_settings))


def check_shards(files: Sequence[str]) -> None:
    """Raises ValueError if some shards of an extraction are given and others are not."""
    present: dict[tuple[str, int], set[int]] = {}
    for file in files:
        match = re.fullmatch(r"(.*)\.shard-(\d+)-of-(\d+)\.npz", Path(file).name)
        if match:
            present.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    for (stem, count), numbers in present.items():
        lacking = sorted(set(range(1, count + 1)) - numbers)
        if lacking:
            listed = ", ".join(map(str, lacking))
            raise ValueError(f"{stem} was extracted in {count} shards; missing from the files: {listed}")

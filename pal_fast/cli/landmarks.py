"""`pal-fast landmarks IMAGES_DIR -o landmarks.npz`: the 68 landmarks of every image, by face-alignment's FAN."""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pal_fast.landmarks.extraction import Outcome

from pal_fast.cli import count, shard_of

NAME = "landmarks"
HELP = "find the 68 facial landmarks in a folder of images; resumes where it was interrupted"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", help="folder of images, searched recursively")
    parser.add_argument("-o", "--output", required=True, help="the .npz to write: names, points, scores")
    parser.add_argument(
        "--boxes",
        default="detect",
        help="where the faces are: detect (default); full: the whole image, for cropped faces such as aligned RAF-DB; "
        "beside: a .npy, .t7 or .pth of boxes next to each image; an AffectNet .csv; RAF-DB's Annotation/boundingbox",
    )
    parser.add_argument("--detector", default="sfd", help="sfd (default), blazeface, retinaface or yunet")
    parser.add_argument("--batch", type=count, default=32, help="images at a time (default 32)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument(
        "--shard",
        default="1/1",
        metavar="i/n",
        help="work on the i-th of n parts of the images and write OUTPUT.shard-i-of-n.npz; then pal-fast merge",
    )
    parser.add_argument(
        "--no-flip", action="store_true", help="skip the mirrored pass: half the work, a little less accurate"
    )
    parser.add_argument(
        "--prune", action="store_true", help="drop landmarks whose images are gone from the output, instead of failing"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    import torch

    from pal_fast.landmarks.boxes import box_finder
    from pal_fast.landmarks.extraction import extract, shard_path
    from pal_fast.landmarks.fan import FaceAligner

    shard, output = shard_of(args.shard), _path(args.output)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    finder = box_finder(args.boxes)

    @functools.cache
    def aligner() -> FaceAligner:
        """Created at the first batch: problems with images or output are reported before networks are loaded."""
        return FaceAligner(finder, device=device, detector=args.detector, flip=not args.no_flip)

    settings = {"network": "face-alignment 2DFAN-4", "boxes": args.boxes, "flip": not args.no_flip}
    if finder is None:
        settings["detector"] = args.detector
    outcome = extract(
        args.images,
        output,
        lambda *batch: aligner()(*batch),
        batch=args.batch,
        shard=shard,
        settings=settings,
        prune=args.prune,
        progress=False if args.quiet else None,
    )
    report(shard_path(output, shard), outcome)
    return 0


def report(path: Path, outcome: Outcome) -> None:
    """One summary: the counts on stdout, images that could not be read on stderr."""
    from pal_fast.messages import first_few

    faceless = outcome.faceless
    without = f", {len(faceless)} of them without a face ({first_few(faceless)})" if faceless else ""
    resumed = f" ({outcome.resumed} from an earlier run)" if outcome.resumed else ""
    print(f"{path}: {len(outcome.landmarks)} images{resumed}{without}")
    if outcome.unreadable:
        listed = first_few(outcome.unreadable, 3)
        print(f"warning: {len(outcome.unreadable)} images cannot be read and are left out: {listed}", file=sys.stderr)


def _path(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".npz":
        raise ValueError(f"--output must be an .npz, got {text!r} (pal-fast convert writes other formats)")
    return path

"""`pal-fast convert INPUT -o OUTPUT`: landmarks from one format to another."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pal_fast.cli import check_output

if TYPE_CHECKING:
    from pal_fast.landmarks import LandmarkSet

NAME = "convert"
HELP = "convert landmarks between formats, or map RAF-DB's annotations into its aligned images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", help="a file, or a folder of files with one image each")
    parser.add_argument("-o", "--output", required=True, help="a file, or a folder for formats with one file per image")
    parser.add_argument(
        "--from", "--format", dest="source", metavar="FORMAT", help="format of the input (default: guessed from it)"
    )
    parser.add_argument("--to", default=None, metavar="FORMAT", help="format of the output (default: by its extension)")
    parser.add_argument("--list-formats", action=_ListFormats, nargs=0, help="list the formats and exit")
    parser.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="size of all images in pixels, for normalised landmarks",
    )
    parser.add_argument("--images", help="folder of the images to read the sizes from, for normalised landmarks")
    parser.add_argument("--to-68", action="store_true", help="reduce WFLW or MediaPipe points to the 68-point scheme")
    parser.add_argument(
        "--aligned",
        choices=("assumed", "measured"),
        help="INPUT is RAF-DB's basic folder: map its points from the original to the aligned images, by the usually "
        "assumed positions of eyes and mouth or by those measured from Image/original and Image/aligned",
    )
    parser.add_argument(
        "--points", choices=("auto", "manual"), default="auto", help="with --aligned: 37 (auto) or 5 (manual) points"
    )


class _ListFormats(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from pal_fast.landmarks import FORMATS

        for name, known in FORMATS.items():
            print(f"{name:<14} {known.describe}")
        parser.exit()


def run(args: argparse.Namespace) -> int:
    from pal_fast.landmarks import FORMATS, LandmarkSet, read_landmark_set, to_68_points, write_landmarks
    from pal_fast.landmarks.formats import format_by_extension

    target = args.to or format_by_extension(args.output)
    one_file = target in FORMATS and FORMATS[target].write_all is not None
    if one_file or not Path(args.output).is_dir():
        check_output(args.output, makes_folder=not one_file)
    if args.aligned:
        marks = aligned_rafdb(Path(args.input), args.points, args.aligned == "measured")
    else:
        size = None if args.image_size is None else (args.image_size[0], args.image_size[1])
        marks = read_landmark_set(args.input, args.source, image_size=size, images=args.images)
    if args.to_68:
        marks = LandmarkSet(to_68_points(marks.points), marks.names)
    write_landmarks(args.output, marks, target)
    count, each = marks.points.shape[:2]
    print(f"{args.output}: {target}, {count} images, {each} landmarks each, {int((~marks.found).sum())} without any")
    return 0


def aligned_rafdb(root: Path, kind: str, measured: bool) -> LandmarkSet:
    """RAF-DB's landmarks in pixels of its aligned images, `NAME_aligned`."""
    from pal_fast.landmarks import LandmarkSet
    from pal_fast.landmarks.rafdb import read_aligned
    from pal_fast.landmarks.rafdb_template import measure_template

    stems = sorted(
        file.name.removesuffix("_manu_attri.txt") for file in root.glob("Annotation/manual/*_manu_attri.txt")
    )
    if not stems:
        raise FileNotFoundError(f"no Annotation/manual/*_manu_attri.txt under {root}: is it RAF-DB's basic folder?")
    template = None
    if measured:
        measurement = measure_template(root)
        template = measurement.template
        places = ", ".join(f"({x:.2f}, {y:.2f})" for x, y in template.tolist())
        print(
            f"eyes and mouth of the aligned images lie at {places}; the images agree with a correlation of "
            f"{measurement.correlation:.3f}"
        )
    return LandmarkSet(read_aligned(root / "Annotation", stems, kind, template), tuple(f"{s}_aligned" for s in stems))

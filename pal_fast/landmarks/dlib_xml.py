"""The XML lists of dlib's imglab, from which its shape predictors are trained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import torch

from pal_fast.files import write_text
from pal_fast.landmarks.errors import LandmarkFileError
from pal_fast.landmarks.landmark_set import LandmarkSet
from pal_fast.landmarks.plausible import warn_of_further_faces

#: More than any scheme has: a larger part number is a mistake in the file.
MOST_PARTS: Final = 10_000


def read_dlib_xml(path: str | Path) -> LandmarkSet:
    """`<image file=...><box ...><part name='00' x='.' y='.'/>...`; pixels counted from 0.

    An image's first box with parts is used, and a warning counts the images that have more; an image without one is
    NaN. The number of landmarks is the largest part number plus one; parts that an image lacks are NaN.
    """
    expected = "dlib's XML: <dataset><images><image file><box><part name x y>"
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise LandmarkFileError(path, error.position[0], expected, str(error)) from error
    images = list(root.iter("image"))
    if not images:
        raise LandmarkFileError(path, None, expected, f"no <image> in <{root.tag}>")
    found: list[tuple[str, dict[int, tuple[float, float]]]] = []
    several: list[str] = []
    for image in images:
        name = image.get("file")
        if name is None:
            raise LandmarkFileError(path, None, expected, "an <image> without file")
        boxes = [box for box in image.iter("box") if box.find("part") is not None]
        parts = boxes[0].findall("part") if boxes else []
        several += [name] if len(boxes) > 1 else []
        try:
            points = {int(p.attrib["name"]): (float(p.attrib["x"]), float(p.attrib["y"])) for p in parts}
        except (KeyError, ValueError) as error:
            raise LandmarkFileError(path, None, f"{expected} with numbers", f"{error} in image {name!r}") from error
        if any(not 0 <= number < MOST_PARTS for number in points):
            wanted = f"part names from 0 to {MOST_PARTS - 1}"
            raise LandmarkFileError(path, None, wanted, f"{sorted(points)[:3]} in image {name!r}")
        found.append((name, points))
    count = 1 + max((number for _, points in found for number in points), default=-1)
    if count == 0:
        raise LandmarkFileError(path, None, expected, "no <part> in any image")
    warn_of_further_faces(several, path)
    table = torch.full((len(found), count, 2), torch.nan)
    for row, (_, points) in enumerate(found):
        for number, point in points.items():
            table[row, number] = torch.tensor(point)
    try:
        return LandmarkSet(table, tuple(name for name, _ in found))
    except ValueError as error:
        raise LandmarkFileError(path, None, "every image once", str(error)) from error


def write_dlib_xml(path: str | Path, landmarks: LandmarkSet) -> None:
    """The box of each image is the bounding box of its points; missing points are left out."""
    rows = []
    for points, name in zip(landmarks.points, landmarks.names, strict=True):
        valid = points[points.isfinite().all(-1)]
        rows.append(f"  <image file={quoteattr(name)}>")
        if len(valid):
            left, top = valid.amin(0).floor().int().tolist()
            right, bottom = valid.amax(0).ceil().int().tolist()
            rows.append(f"    <box top='{top}' left='{left}' width='{right - left + 1}' height='{bottom - top + 1}'>")
            rows += [
                f"      <part name='{number:02d}' x='{x:.4f}' y='{y:.4f}'/>"
                for number, (x, y) in enumerate(points.tolist())
                if math.isfinite(x) and math.isfinite(y)
            ]
            rows.append("    </box>")
        rows.append("  </image>")
    body = "\n".join(rows)
    write_text(path, f"<?xml version='1.0' encoding='UTF-8'?>\n<dataset>\n<images>\n{body}\n</images>\n</dataset>\n")

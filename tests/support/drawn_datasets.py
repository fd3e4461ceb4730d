"""Small copies of the public data sets: JPEG files of drawn faces in exactly their layouts, with annotation files.

Every writer returns the faces and, for each image's path relative to the root, the landmarks in pixels of that file.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pal_fast.faces import EXPRESSIONS, FaceSet, make_faces
from pal_fast.landmarks.geometry import fit_similarity, invert, transform_points
from pal_fast.landmarks.rafdb import TEMPLATE, anchors

RAFDB_CLASSES = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
AFFECTNET_CLASSES = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
FERPLUS_CLASSES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")


@dataclass(frozen=True)
class Written:
    """The files on disk: names below the root, labels by name of the expression, landmarks (N, 68, 2)."""

    root: Path
    names: tuple[str, ...]
    expressions: tuple[str, ...]
    landmarks: Tensor


def save_jpeg(path: Path, image: Tensor) -> None:
    """image (3, H, W) in [0, 1]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path, quality=95)


def expressions_of(faces: FaceSet) -> tuple[str, ...]:
    """The name of each face's expression, as spelt by the public data sets."""
    return tuple(EXPRESSIONS[label] for label in faces.labels.tolist())


def five_points(landmarks: Tensor) -> Tensor:
    """Eye centres, nose tip and mouth corners from the 68. (N, 68, 2) -> (N, 5, 2)."""
    p = landmarks
    return torch.stack([p[:, 36:42].mean(1), p[:, 42:48].mean(1), p[:, 30], p[:, 48], p[:, 54]], 1)


def warp(image: Tensor, matrix: Tensor, size: int) -> Tensor:
    """The image (3, H, W) under the similarity `matrix` (2, 3), as (3, size, size); integer = pixel centre."""
    height, width = image.shape[-2:]
    y, x = torch.meshgrid(torch.arange(size).float(), torch.arange(size).float(), indexing="ij")
    source = transform_points(torch.stack([x, y], -1).view(-1, 2), invert(matrix))
    grid = (source + 0.5) / torch.tensor([width, height]) * 2 - 1
    sampled = torch.nn.functional.grid_sample(
        image[None], grid.view(1, size, size, 2).to(image), mode="bilinear", align_corners=False
    )
    return sampled[0]


def write_rafdb(
    root: Path, train: int = 21, test: int = 14, *, seed: int = 0, template: Sequence[Sequence[float]] = TEMPLATE
) -> Written:
    """RAF-DB basic: EmoLabel, Image/original and Image/aligned, Annotation/auto, manual and boundingbox.

    The faces are drawn in original images of 128 pixels and aligned as RAF-DB's are, by eyes and mouth. The 37
    automatic points are the first 37 of the 68.
    """
    count = train + test
    faces = make_faces(count, 128, seed=seed)
    manual = five_points(faces.landmarks)
    wanted = torch.tensor(template).expand(count, 3, 2)
    matrices = fit_similarity(anchors(manual), wanted)
    lines, names = [], []
    for row in range(count):
        stem = f"train_{row + 1:05d}" if row < train else f"test_{row - train + 1:04d}"
        name = f"Image/aligned/{stem}_aligned.jpg"
        save_jpeg(root / "Image" / "original" / f"{stem}.jpg", faces.images[row])
        save_jpeg(root / name, warp(faces.images[row], matrices[row], 100))
        names.append(name)
        lines.append(f"{stem}.jpg {RAFDB_CLASSES.index(EXPRESSIONS[int(faces.labels[row])]) + 1}\n")
        auto = "".join(f"{x:.4f}\t{y:.4f}\n" for x, y in faces.landmarks[row, :37].tolist())
        points = "".join(f"{x:.6f}\t{y:.6f}\n" for x, y in manual[row].tolist())
        low, high = faces.landmarks[row].amin(0), faces.landmarks[row].amax(0)
        write(root / "Annotation" / "auto" / f"{stem}_auto_attri.txt", auto)
        write(root / "Annotation" / "manual" / f"{stem}_manu_attri.txt", f"{points}{row % 3}\n{row % 2}\n{row % 5}\n")
        box = f"{low[0]:.2f} {low[1]:.2f} {high[0]:.2f} {high[1]:.2f}\n"
        write(root / "Annotation" / "boundingbox" / f"{stem}_boundingbox.txt", box)
    write(root / "EmoLabel" / "list_patition_label.txt", "".join(lines))
    return Written(root, tuple(names), expressions_of(faces), transform_points(faces.landmarks, matrices))


def write_row_column(folder: Path, written: Written) -> None:
    """The known dump for aligned RAF-DB: one file of 68 `row<TAB>column` integers per image."""
    for name, points in zip(written.names, written.landmarks, strict=True):
        rows = "".join(f"{round(y)}\t{round(x)}\n" for x, y in points.tolist())
        write(folder / f"{Path(name).stem}.txt", rows)


def write_affectnet_small(root: Path, train: int = 21, test: int = 14, *, size: int = 64, seed: int = 0) -> Written:
    """The small AffectNet: train_set and val_set with images/K.jpg and annotations/K_{exp,lnd,val,aro}.npy.

    Every other image's annotation is stored as strings, as in the public release.
    """
    faces = make_faces(train + test, size, seed=seed)
    names = []
    for row in range(train + test):
        folder, number = ("train_set", row) if row < train else ("val_set", row - train)
        save_jpeg(root / folder / "images" / f"{number}.jpg", faces.images[row])
        annotations = root / folder / "annotations"
        annotations.mkdir(exist_ok=True)
        label = AFFECTNET_CLASSES.index(EXPRESSIONS[int(faces.labels[row])])
        kind = str if number % 2 else float
        np.save(annotations / f"{number}_exp.npy", np.array(str(label)))
        np.save(annotations / f"{number}_lnd.npy", faces.landmarks[row].flatten().numpy().astype(kind))
        for name in ("val", "aro"):
            np.save(annotations / f"{number}_{name}.npy", np.array("0.25"))
        names.append(f"{folder}/images/{number}.jpg")
    return Written(root, tuple(names), expressions_of(faces), faces.landmarks)


def write_affectnet_full(root: Path, train: int = 21, test: int = 14, *, seed: int = 0) -> Written:
    """The full AffectNet: training.csv, validation.csv and whole images of two sizes, the face in a part of each.

    Two more rows of each list are labelled 9 (uncertain) and 10 (no face). Landmarks are in pixels of whole images.
    """
    sizes = (64, 80)
    places = ((40, 24), (64, 10))
    per_size = [make_faces(train + test, size, seed=seed) for size in sizes]
    generator = torch.Generator().manual_seed(seed)
    names: list[str] = []
    points = []
    header = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
    tables: dict[str, list[list[str]]] = {"training.csv": [], "validation.csv": []}
    for row in range(train + test):
        size, (left, top), faces = sizes[row % 2], places[row % 2], per_size[row % 2]
        picture = torch.rand(3, 110, 160, generator=generator) * 0.2
        picture[:, top : top + size, left : left + size] = faces.images[row]
        name = f"{row % 3 + 1}/{row:08x}.jpg"
        save_jpeg(root / "Manually_Annotated_Images" / name, picture)
        landmarks = faces.landmarks[row] + torch.tensor([left, top])
        names.append(name)
        points.append(landmarks)
        label = AFFECTNET_CLASSES.index(EXPRESSIONS[int(faces.labels[row])])
        text = ";".join(f"{value:.3f}" for value in landmarks.flatten().tolist())
        table = tables["training.csv" if row < train else "validation.csv"]
        table.append([name, str(left), str(top), str(size), str(size), text, str(label), "-0.5", "0.25"])
    for name, table in tables.items():
        extra = [["1/none.jpg", *table[0][1:6], label, "-2", "-2"] for label in ("9", "10")]
        columns = [header.split(",")] if name == "training.csv" else []  # the validation list has no header
        write_csv(root / name, [*columns, *table, *extra])
    return Written(root, tuple(names), expressions_of(per_size[0]), torch.stack(points))


def write_ferplus(root: Path, train: int = 21, test: int = 14, *, seed: int = 0, per_folder: bool = True) -> Written:
    """FERPlus: images of 48 pixels in FER2013Train and FER2013Test, with votes in label.csv or fer2013new.csv.

    One more image in each has no majority.
    """
    faces = make_faces(train + test, 48, seed=seed)
    names = []
    rows: dict[str, list[list[str]]] = {"FER2013Train": [], "FER2013Valid": [], "FER2013Test": []}
    for row in range(train + test):
        folder = "FER2013Train" if row < train else "FER2013Test"
        name = f"fer{row:07d}.jpg"
        save_jpeg(root / folder / name, faces.images[row])
        names.append(f"{folder}/{name}")
        votes = [0] * 10
        votes[FERPLUS_CLASSES.index(EXPRESSIONS[int(faces.labels[row])])] = 8
        votes[row % 10] += 1
        rows[folder].append([name, *map(str, votes)])
    for number, folder in enumerate(("FER2013Train", "FER2013Test")):
        rows[folder].append([f"ferx{number}.jpg", "5", "5", *["0"] * 8])
    if per_folder:
        for folder, table in rows.items():
            write_csv(root / folder / "label.csv", table)
    else:
        usages = {"FER2013Train": "Training", "FER2013Valid": "PublicTest", "FER2013Test": "PrivateTest"}
        head = ["Usage", "Image name", *FERPLUS_CLASSES, "unknown", "NF"]
        table = [[usages[folder], *cells] for folder, table in rows.items() for cells in table]
        write_csv(root / "fer2013new.csv", [head, *table, ["Training", "", *["0"] * 10]])
    return Written(root, tuple(names), expressions_of(faces), faces.landmarks)


def write_folder(root: Path, train: int = 21, test: int = 14, *, size: int = 64, seed: int = 0) -> Written:
    """An ImageFolder: train/EXPRESSION/K.jpg and test/EXPRESSION/K.jpg, numbered from 0 in every class."""
    faces = make_faces(train + test, size, seed=seed)
    names, counts = [], {}
    for row, expression in enumerate(expressions_of(faces)):
        split = "train" if row < train else "test"
        number = counts[split, expression] = counts.get((split, expression), -1) + 1
        names.append(f"{split}/{expression}/{number}.jpg")
        save_jpeg(root / names[-1], faces.images[row])
    for expression in EXPRESSIONS:
        (root / "train" / expression).mkdir(parents=True, exist_ok=True)
    return Written(root, tuple(names), expressions_of(faces), faces.landmarks)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_csv(path: Path, rows: Iterable[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)

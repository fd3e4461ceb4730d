"""AffectNet's lists and .npy files, dlib's XML, MediaPipe's mesh; conversion on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pal_fast import cli
from pal_fast.data import open_dataset
from pal_fast.faces import make_faces
from pal_fast.landmarks import (
    FORMATS,
    MIRROR,
    LandmarkFileError,
    LandmarkSet,
    read_landmark_set,
    read_landmarks,
    renumber_mirrored,
    to_68_points,
    write_landmarks,
)
from pal_fast.landmarks.affectnet import COLUMNS, read_csv, read_expression

HEADER = ",".join(COLUMNS)
POINTS = ";".join(f"{k}.5;{k + 200}" for k in range(68))
ROW = f"1/a.jpg,10,20,30,40,{POINTS},3,-0.5,0.25"


@pytest.mark.parametrize("head", [f"{HEADER}\n", "", f"\ufeff{HEADER}\n"])
def test_an_affectnet_list_is_read_with_or_without_a_header(tmp_path: Path, head: str) -> None:
    file = tmp_path / "training.csv"
    nothing = "1/b.jpg,NULL,NULL,NULL,NULL,NULL,9,-2,-2"
    file.write_text(f"{head}{ROW}\n{nothing}\n", encoding="utf-8")
    first, second = read_csv(file)
    assert (first.name, first.box, first.expression) == ("1/a.jpg", (10, 20, 30, 40), 3)
    assert first.points[67].tolist() == [67.5, 267]
    assert second.box is None
    assert np.isnan(second.points).all()
    marks = read_landmark_set(file)
    assert marks.names == ("1/a.jpg", "1/b.jpg")
    assert marks.found.tolist() == [True, False]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (ROW.replace(",3,-0.5", ",12,-0.5"), "an expression from 0 to 10"),
        (ROW.replace("10,20,30,40", "10,20,30,wide"), "face_x, face_y"),
        (ROW.replace(";267", ";"), "136 numbers"),
        (ROW.replace(";267", ";y"), "facial_landmarks x;y"),
        (ROW.rsplit(",", 1)[0], "9 columns"),
    ],
)
def test_a_malformed_line_of_a_list_is_reported_by_number(tmp_path: Path, row: str, expected: str) -> None:
    file = tmp_path / "training.csv"
    file.write_text(f"{HEADER}\n{ROW}\n{row}\n")
    with pytest.raises(LandmarkFileError, match=expected) as failure:
        read_landmarks(file)
    assert str(failure.value).startswith(f"{file}, line 3: expected ")


@pytest.mark.parametrize(
    "head",
    [
        "frame,face_id,timestamp,confidence,success," + ",".join(f"x_{k}" for k in range(132)),  # OpenFace's
        "filename," + ",".join(f"x_{k},y_{k}" for k in range(68)),
    ],
)
def test_another_kind_of_csv_is_refused_with_a_remedy(tmp_path: Path, head: str) -> None:
    file = tmp_path / "faces.csv"
    file.write_text(f"{head}\n{','.join(['1'] * 137)}\n")
    with pytest.raises(LandmarkFileError, match=r"faces\.csv, line 1: expected 9 columns.*, found 137") as error:
        read_landmark_set(file)
    assert "AffectNet's list is the only .csv that can be read" in str(error.value)
    assert "LandmarkSet(points, names).save('landmarks.npz')" in str(error.value)


def test_a_malformed_line_of_an_affectnet_list_is_not_taken_for_another_kind_of_csv(tmp_path: Path) -> None:
    for head in (HEADER, ROW):
        (tmp_path / "training.csv").write_text(f"{head}\n1,2,3\n")
        with pytest.raises(LandmarkFileError, match=r"line 2: expected 9 columns, found 3$"):
            read_landmark_set(tmp_path / "training.csv")


@pytest.mark.parametrize("text", ["", "\n", f"{HEADER}\n"])
def test_a_list_without_images_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "training.csv").write_text(text)
    with pytest.raises(LandmarkFileError, match=r"expected rows of the columns subDirectory_filePath.*, found none"):
        read_landmark_set(tmp_path / "training.csv")


def _row(name: str) -> str:
    return f"{name},1,2,3,4,{';'.join(['1.5'] * 136)},3,0.1,0.2"


@pytest.mark.parametrize("which", ["affectnet", "ferplus folders", "ferplus one list"])
@pytest.mark.parametrize(
    ("broken", "line", "found"),
    [
        (b'"never closed\n' + b"x" * 200_000, None, r"a file that is not CSV \(field larger"),
        ("Müller.jpg,0,1\n".encode("latin-1"), 3, "bytes that are not UTF-8"),
    ],
)
def test_a_csv_that_is_not_utf_8_is_refused_naming_the_line(
    tmp_path: Path, which: str, broken: bytes, line: int | None, found: str
) -> None:
    good = {
        "affectnet": [_row("a.jpg"), _row("b.jpg")],
        "ferplus folders": ["a.jpg,9,0,0,0,0,0,0,0,0,1", "b.jpg,9,0,0,0,0,0,0,0,0,1"],
        "ferplus one list": [f"Training,{name}.jpg,9,0,0,0,0,0,0,0,0,1" for name in "ab"],
    }[which]
    path = tmp_path / {"affectnet": "training.csv", "ferplus folders": "FER2013Train/label.csv"}.get(
        which, "fer2013new.csv"
    )
    path.parent.mkdir(exist_ok=True)
    path.write_bytes("\n".join([*good, ""]).encode() + broken)
    place = rf"{path.name}, line {line or '[34]'}: expected .*, found {found}"
    with pytest.raises(LandmarkFileError, match=place):
        open_dataset(which.split()[0], tmp_path, "train", landmarks=False)
    if which == "affectnet":
        with pytest.raises(LandmarkFileError, match=place):
            read_landmark_set(path)


def test_non_ascii_names_are_read_from_a_list(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("\n".join([_row("Müller/ä.jpg"), "", _row("b.jpg")]), encoding="utf-8-sig")
    assert [(row.name, row.line) for row in read_csv(tmp_path / "l.csv")] == [("Müller/ä.jpg", 1), ("b.jpg", 3)]


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b'{"a.jpg": null,\n"\xff.jpg": null}', r"m\.json, line 2: .*found bytes that are not UTF-8"),
        (b"[" * 100_000, r"m\.json.*: expected 468 or 478 points"),
    ],
)
def test_a_mesh_file_that_is_not_utf_8_json_is_named_in_the_error(tmp_path: Path, content: bytes, place: str) -> None:
    (tmp_path / "m.json").write_bytes(content)
    with pytest.raises(LandmarkFileError, match=place):
        read_landmark_set(tmp_path / "m.json", image_size=100)


def test_a_duplicate_image_in_a_list_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "training.csv"
    file.write_text(f"{ROW}\n{ROW}\n")
    with pytest.raises(LandmarkFileError, match=r"every image once.*1/a\.jpg"):
        read_landmarks(file)


@pytest.mark.parametrize("kind", [np.float64, np.float32, str, "S"])
@pytest.mark.parametrize("shape", [(136,), (68, 2), (1, 136)])
def test_affectnet_npy_holds_numbers_or_strings_of_any_shape(
    tmp_path: Path, kind: type | str, shape: tuple[int, ...], seed: int
) -> None:
    values = np.random.default_rng(seed).uniform(-10, 230, 136).round(2)
    folder = tmp_path / "train_set" / "annotations"
    folder.mkdir(parents=True)
    np.save(folder / "7_lnd.npy", values.astype(kind).reshape(shape))
    np.save(folder / "7_exp.npy", np.array("5").astype(kind))
    marks = read_landmark_set(tmp_path)
    assert marks.names == ("train_set/images/7",)
    np.testing.assert_allclose(marks.points.flatten().numpy(), values, rtol=1e-6)
    assert read_expression(folder / "7_exp.npy") == 5
    assert marks.find(["train_set/images/7.jpg", "val_set/images/7.jpg"]).tolist() == [0, -1]


def test_an_affectnet_npy_with_other_contents_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "1_lnd.npy", np.zeros(135))
    with pytest.raises(LandmarkFileError, match="136 numbers"):
        read_landmarks(tmp_path / "1_lnd.npy")
    np.save(tmp_path / "1_lnd.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(LandmarkFileError, match="strings that are numbers"):
        read_landmarks(tmp_path / "1_lnd.npy")
    np.save(tmp_path / "1_exp.npy", np.array("11"))
    with pytest.raises(LandmarkFileError, match="one expression from 0 to 10"):
        read_expression(tmp_path / "1_exp.npy")


def test_dlib_xml_keeps_missing_parts_and_images_without_a_face(tmp_path: Path) -> None:
    file = tmp_path / "m.xml"
    file.write_text(
        "<dataset><images>"
        "<image file='a b.jpg'><box top='1' left='2' width='3' height='4'>"
        "<part name='00' x='5' y='6'/><part name='02' x='-1' y='8.5'/></box></image>"
        "<image file='none.jpg'/></images></dataset>"
    )
    marks = read_landmark_set(file)
    assert marks.names == ("a b.jpg", "none.jpg")
    assert marks.points[0, [0, 2]].tolist() == [[5, 6], [-1, 8.5]]
    assert marks.points[0, 1].isnan().all()
    assert marks.found.tolist() == [True, False]


def test_dlib_xml_keeps_the_first_of_several_faces_and_warns(tmp_path: Path) -> None:
    empty = "<box top='1' left='2' width='3' height='4'/>"
    first, second = (f"<box><part name='0' x='{x}' y='6'/><part name='1' x='8' y='9'/></box>" for x in (5, 7))
    image = "<image file='{}.jpg'>{}</image>"
    images = [("a", empty + first + second), ("b", second + empty), ("c", second + first + first)]
    body = "".join(image.format(*each) for each in images)
    (tmp_path / "m.xml").write_text(f"<dataset><images>{body}</images></dataset>")
    with pytest.warns(UserWarning, match=r"2 images have several faces, of which the first is read \(a\.jpg, c\.jpg\)"):
        marks = read_landmark_set(tmp_path / "m.xml")
    assert marks.points[:, 0, 0].tolist() == [5, 7, 7]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<dataset><images><image file='a'>", "dlib's XML"),
        ("<html/>", "no <image>"),
        ("<d><image><box/></image></d>", "without file"),
        ("<d><image file='a'><box><part name='0' x='wide' y='1'/></box></image></d>", "numbers"),
        ("<d><image file='a'><box><part name='-1' x='1' y='1'/></box></image></d>", "part names from 0"),
        ("<d><image file='a'><box/></image></d>", "no <part>"),
    ],
)
def test_malformed_xml_is_refused_stating_what_was_expected(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "m.xml"
    file.write_text(text)
    with pytest.raises(LandmarkFileError, match=expected):
        read_landmarks(file)


@pytest.mark.parametrize("count", [468, 478])
def test_mediapipe_coordinates_are_normalised_by_the_image_edges(tmp_path: Path, count: int, seed: int) -> None:
    """0 and 1 are the outer edges of the first and last pixel: the centre of pixel k is at (k + 0.5) / width."""
    values = np.random.default_rng(seed).random((2, count, 3))
    wanted = torch.from_numpy(values[..., :2]) * torch.tensor([320, 200]) - 0.5
    np.save(tmp_path / "m.npy", values)
    points = read_landmarks(tmp_path / "m.npy", image_size=(200, 320))
    torch.testing.assert_close(points, wanted.float())
    lists = {
        "a.jpg": [{"x": x, "y": y, "z": z} for x, y, z in values[0].tolist()],
        "b.jpg": [[x, y] for x, y, _ in values[1].tolist()],
        "c.jpg": None,
    }
    (tmp_path / "m.json").write_text(json.dumps(lists))
    marks = read_landmark_set(tmp_path / "m.json", image_size=(200, 320))
    assert marks.names == ("a.jpg", "b.jpg", "c.jpg")
    torch.testing.assert_close(marks.points[:2], wanted.float())
    assert marks.points[2].isnan().all()


def test_mediapipe_conversion_reads_image_sizes_from_the_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "images").mkdir()
    image.new("RGB", (50, 40)).save(tmp_path / "images" / "a.jpg")
    (tmp_path / "m.json").write_text(json.dumps({"a.jpg": [[0.5, 0.5]] + [[0.2, 0.3]] * 467}))
    assert read_landmarks(tmp_path / "m.json", images=tmp_path / "images")[0, 0].tolist() == [24.5, 19.5]
    with pytest.raises(ValueError, match="image_size"):
        read_landmarks(tmp_path / "m.json")
    (tmp_path / "m.json").write_text(json.dumps({"absent.jpg": [[0.5, 0.5]] * 468}))
    with pytest.raises(FileNotFoundError, match=r"no image 'absent\.jpg'"):
        read_landmarks(tmp_path / "m.json", images=tmp_path / "images")


@pytest.mark.parametrize("content", ["[1, 2", "3", '{"a": [[1, 2]]}', '{"a": "wrong"}', '{"a": null}'])
def test_malformed_mediapipe_is_refused_stating_what_was_expected(tmp_path: Path, content: str) -> None:
    file = tmp_path / "m.json"
    file.write_text(content)
    with pytest.raises(LandmarkFileError, match="468 or 478 points"):
        read_landmarks(file, image_size=10)


def test_mirrored_numbering_is_an_involution_that_keeps_the_midline() -> None:
    for count, order in MIRROR.items():
        assert sorted(order) == list(range(count))
        assert all(order[order[k]] == k for k in range(count))
    assert [k for k in range(68) if MIRROR[68][k] == k] == [8, 27, 28, 29, 30, 33, 51, 57, 62, 66]
    points = torch.rand(2, 7, 2)
    assert renumber_mirrored(points) is points, "a scheme that is not known keeps its order"


def test_a_mean_face_is_its_own_mirror_image() -> None:
    """Averaged over many drawn faces, left and right differ only by chance, so a wrong pair would stand out."""
    points = make_faces(500, 16, seed=3).landmarks
    points = points - points.mean(1, keepdim=True)
    mean = points.mean(0)
    mirrored = renumber_mirrored(mean * torch.tensor([-1.0, 1.0]))
    face = float((mean[16] - mean[0]).norm())
    assert float((mean - mirrored).norm(dim=-1).max()) < 0.025 * face


def test_wflw_and_mediapipe_schemes_are_converted_to_68_points() -> None:
    for count in (98, 468, 478):
        points = torch.arange(count).float()[:, None].expand(-1, 2)
        chosen = to_68_points(points)[:, 0].int().tolist()
        assert len(set(chosen)) == 68
    wflw = to_68_points(torch.arange(98).float()[:, None].expand(-1, 2))[:, 0].int().tolist()
    assert wflw[:17] == list(range(0, 33, 2))
    assert wflw[36:48] == [60, 61, 63, 64, 65, 67, 68, 69, 71, 72, 73, 75]
    # Mirroring in WFLW's scheme and converting to 68 points commute.
    for k in range(68):
        assert MIRROR[98][wflw[k]] == wflw[MIRROR[68][k]]
    with pytest.raises(ValueError, match="from 68, 98, 468, 478, got 5"):
        to_68_points(torch.zeros(5, 2))


def test_convert_between_formats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], generator: torch.Generator
) -> None:
    points = torch.rand(3, 98, 2, generator=generator) * 100
    write_landmarks(tmp_path / "list.txt", LandmarkSet(points, ("a.jpg", "b/c.jpg", "d.jpg")), "wflw")
    steps = [
        ["list.txt", "-o", "one.npz", "--to-68"],
        ["one.npz", "-o", "two.xml"],
        ["two.xml", "-o", "three", "--to", "pts"],
        ["three", "-o", "four.npz"],
    ]
    for source, dash, target, *rest in steps:
        assert cli.main(["convert", str(tmp_path / source), dash, str(tmp_path / target), *rest]) == 0
    assert "3 images, 68 landmarks each, 0 without any" in capsys.readouterr().out
    marks = read_landmark_set(tmp_path / "four.npz")
    assert marks.names == ("a", "b/c", "d")
    torch.testing.assert_close(marks.points, to_68_points(points), rtol=0, atol=2e-4)


def test_convert_refuses_unsupported_conversions_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    LandmarkSet(torch.zeros(1, 68, 2), ("a",)).save(tmp_path / "m.npz")
    source = str(tmp_path / "m.npz")
    for arguments, named in (
        (["-o", str(tmp_path / "x.dat")], "give --to"),
        (["-o", str(tmp_path / "x"), "--to", "affectnet-csv"], "can be read but not written"),
        (["-o", str(tmp_path / "x.txt"), "--to", "wflw"], "98 points"),
        (["-o", str(tmp_path / "x.npz"), "--from", "ptss"], "did you mean 'pts'"),
    ):
        assert cli.main(["convert", source, *arguments]) == 2
        assert named in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.npz"]


def test_every_format_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["convert", "--list-formats"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()] == list(FORMATS)

"""dlib's XML, MediaPipe's mesh, mirrored and reduced schemes; conversion on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pal_fast import cli
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


def test_landmarks_are_written_in_the_format_of_the_extension(tmp_path: Path) -> None:
    marks = LandmarkSet(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), ("a.jpg",))
    for name in ("m.npz", "m.xml"):
        write_landmarks(tmp_path / name, marks)
        torch.testing.assert_close(read_landmarks(tmp_path / name), marks.points)
    with pytest.raises(
        ValueError, match=r"the format of .*m\.dat' cannot be told from its name: give .* one of npz, pts"
    ):
        write_landmarks(tmp_path / "m.dat", marks)
    assert not (tmp_path / "m.dat").exists()


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

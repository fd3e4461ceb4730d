"""The check that the sdist's wheel equals the installed one (support/same_wheel.py) detects every difference."""

from __future__ import annotations

import zipfile
from importlib.metadata import PathDistribution

import pytest
from support.same_wheel import differences

WHEEL = """pal_fast/__init__.py,sha256=aa,10
pal_fast/_C.abi3.so,sha256=bb,20
pal_fast-0.1.dist-info/METADATA,sha256=cc,30
pal_fast-0.1.dist-info/RECORD,,
"""
#: As pip leaves it.
INSTALLED = f"""../../../bin/pal-fast,sha256=dd,200
{WHEEL}pal_fast-0.1.dist-info/INSTALLER,sha256=ee,4
pal_fast-0.1.dist-info/REQUESTED,sha256=ff,0
pal_fast-0.1.dist-info/direct_url.json,sha256=gg,50
pal_fast/__pycache__/__init__.cpython-311.pyc,,
"""


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("", ""), []),
        (("sha256=bb", "sha256=xx"), ["differs: pal_fast/_C.abi3.so"]),
        (("pal_fast/_C.abi3.so,sha256=bb,20\n", ""), ["only in the wheel: pal_fast/_C.abi3.so"]),
        (("pal_fast/_C", "pal_fast/more.py,sha256=hh,1\npal_fast/_C"), ["only installed: pal_fast/more.py"]),
    ],
)
def test_a_wheel_is_compared_file_by_file(tmp_path, change, expected):
    wheel = tmp_path / "pal_fast-0.1-cp310-abi3-linux_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("pal_fast-0.1.dist-info/RECORD", WHEEL)
    folder = tmp_path / "pal_fast-0.1.dist-info"
    folder.mkdir()
    (folder / "RECORD").write_text(INSTALLED.replace(*change) if change[0] else INSTALLED)
    assert differences(wheel, PathDistribution(folder)) == expected

"""The installed distribution is one abi3 wheel that depends on PyTorch's stable ABI alone (DESIGN 5)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support.installed import installed

from pal_fast import _extension


@pytest.fixture(scope="module")
def extension() -> Path:
    path = _extension.find()
    assert path is not None, "the extension is not built"
    return path


def output_of(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_wheel_is_tagged_abi3_for_every_python_from_3_10():
    wheel = installed().read_text("WHEEL")
    assert wheel is not None
    assert re.search(r"^Tag: cp310-abi3-", wheel, re.MULTILINE), wheel


def test_the_wheel_holds_extension_kernels_and_type_marker():
    files = {str(file) for file in installed().files or []}
    assert {
        "pal_fast/_C.abi3.so",
        "pal_fast/kernels/pal_loss.py",
        "pal_fast/benchmarks/loss.py",
        "pal_fast/py.typed",
    } <= files
    assert not [name for name in files if name.startswith(("tests/", "benchmarks/", "kernels/", "csrc/"))]


def test_the_extension_links_no_torch_library_but_torch_cpu(extension):
    needed = re.findall(r"NEEDED.*\[(.*)\]", output_of("readelf", "-d", str(extension)))
    assert "libtorch_cpu.so" in needed
    forbidden = [name for name in needed if re.match(r"lib(torch|c10|torch_python|cuda|cudart|python)", name)]
    assert forbidden == ["libtorch_cpu.so"], needed


def test_the_extension_uses_only_the_stable_abi_of_torch(extension):
    """All undefined symbols are C: the stable shims, the C and C++ runtimes, Python's limited API."""
    undefined = re.findall(r" U (\S+)", output_of("nm", "-D", str(extension)))
    foreign = [name for name in undefined if re.search(r"_ZN(K?)(2at|3c10|5torch)", name)]
    assert not foreign, foreign
    assert any(name.startswith(("aoti_torch_", "torch_")) for name in undefined)


def test_the_extension_is_smaller_than_ten_megabytes(extension):
    assert extension.stat().st_size < 40e6
    import io
    import zipfile

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(extension)
    assert packed.tell() < 10e6

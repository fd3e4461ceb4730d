"""How the build uses the compilers of a machine (csrc/toolchain.py)."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from support.pyproject import ROOT, requirements, satisfied

#: A stand-in for nvcc that answers setup.py's queries as those releases do.
NVCC = """#!/bin/sh
case "$1" in
    --version) echo "Cuda compilation tools, release {version}, V{version}.1" ;;
    --list-gpu-code) printf 'sm_%s\\n' {known} ;;
    --dryrun) echo "#$ TOP={home}" >&2 ;;
esac
"""
CUDA_12_4 = "50 52 53 60 61 62 70 72 75 80 86 87 89 90"
CUDA_13_0 = "75 80 86 87 88 89 90 100 110 103 120 121"
ALL = "75;80;86;89;90;100;120"


@pytest.fixture
def toolchain(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    for variable in ("CUDA_HOME", "CUDA_PATH", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    spec = importlib.util.spec_from_file_location("toolchain", ROOT / "csrc" / "toolchain.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.sys, "platform", "linux")
    return module


def toolkit(home: Path, version: str, known: str = CUDA_12_4) -> Path:
    (home / "bin").mkdir(parents=True)
    nvcc = home / "bin" / "nvcc"
    nvcc.write_text(NVCC.format(version=version, known=known, home=home))
    nvcc.chmod(0o755)
    return home


def test_a_compiler_may_be_a_command_with_arguments(toolchain, monkeypatch):
    monkeypatch.setenv("CXX", f"{sys.executable} -E")
    assert toolchain.host_compiler() == [sys.executable, "-E"]


@pytest.mark.parametrize("given", [None, "no-such-compiler --fast"])
def test_without_a_compiler_the_error_names_the_alternatives(toolchain, monkeypatch, given):
    monkeypatch.setenv("PATH", "")
    if given:
        monkeypatch.setenv("CXX", given)
    with pytest.raises(SystemExit, match=r"is on PATH.*|is not on PATH.*") as refused:
        toolchain.host_compiler()
    assert "C++20 compiler" in str(refused.value)
    assert "PAL_FAST_EXTENSION=0" in str(refused.value)


def test_nvcc_on_path_determines_the_toolkit(toolchain, monkeypatch, tmp_path):
    home = toolkit(tmp_path / "cuda", "12.4")
    monkeypatch.setenv("PATH", str(home / "bin"), prepend=os.pathsep)
    assert toolchain.find_cuda("auto", tmp_path) == (home, "")


def test_an_nvcc_without_cpp20_is_ignored_by_default_and_refused_on_request(toolchain, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "cuda", "11.8")))
    home, why = toolchain.find_cuda("auto", tmp_path)
    assert home is None
    assert "nvcc 11.8" in why
    assert "12.0" in why
    with pytest.raises(SystemExit, match=r"PAL_FAST_CUDA=1, but nvcc 11\.8 .* PAL_FAST_CUDA=pypi"):
        toolchain.find_cuda("1", tmp_path)


@pytest.mark.parametrize(("kind", "name"), [("hip", "ROCm"), ("xpu", "XPU")])
def test_nvcc_is_not_used_by_default_with_a_rocm_or_xpu_pytorch(toolchain, monkeypatch, tmp_path, kind, name):
    home = toolkit(tmp_path / "cuda", "13.0", CUDA_13_0)
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setattr(torch.version, kind, "7.0", raising=False)
    assert toolchain.find_cuda("auto", tmp_path) == (None, f"this PyTorch is a {name} build")
    assert toolchain.find_cuda("1", tmp_path) == (home, "")


@pytest.mark.parametrize("mode", ["1", "pypi"])
def test_cuda_kernels_are_not_built_on_macos(toolchain, monkeypatch, tmp_path, mode):
    monkeypatch.setattr(toolchain.sys, "platform", "darwin")
    assert toolchain.find_cuda("auto", tmp_path) == (None, "CUDA kernels are built on Linux only")
    with pytest.raises(SystemExit, match=f"PAL_FAST_CUDA={mode}, but CUDA kernels are built on Linux only$"):
        toolchain.find_cuda(mode, tmp_path)


def test_default_architectures_unknown_to_nvcc_are_skipped_with_a_message(toolchain, capsys, tmp_path):
    home = toolkit(tmp_path, "12.4")
    assert toolchain.architectures_for(home, ALL, chosen=False) == ["75", "80", "86", "89", "90"]
    said = capsys.readouterr().out
    assert "nvcc 12.4 cannot compile for sm_100, sm_120" in said
    assert "PTX of sm_90" in said


def test_a_newer_nvcc_may_have_dropped_older_architectures(toolchain, tmp_path):
    home = toolkit(tmp_path, "13.0", CUDA_13_0)
    assert toolchain.architectures_for(home, ALL, chosen=False) == ALL.split(";")
    assert toolchain.architectures_for(home, f"70;{ALL}", chosen=False) == ALL.split(";")


def test_chosen_architectures_unknown_to_nvcc_are_an_error(toolchain, tmp_path):
    with pytest.raises(SystemExit, match=r"cannot compile for sm_120, only for sm_50, .*, sm_90$"):
        toolchain.architectures_for(toolkit(tmp_path, "12.4"), "90;120", chosen=True)


@pytest.mark.parametrize("given", ["", ";", "8.6", "80,90", "sm_80"])
def test_malformed_architectures_are_refused(toolchain, tmp_path, given):
    with pytest.raises(SystemExit, match=re.escape(f'as "80;90", got {given!r}')):
        toolchain.architectures_for(toolkit(tmp_path, "12.4"), given, chosen=True)


def test_only_cuda_13_compresses_the_kernels_further(toolchain, tmp_path):
    assert toolchain.compression(toolkit(tmp_path / "old", "12.9")) == []
    assert toolchain.compression(toolkit(tmp_path / "new", "13.0")) == ["--compress-mode=size"]


def test_the_static_runtime_is_found_or_its_absence_is_an_error(toolchain, monkeypatch, tmp_path):
    monkeypatch.setattr(toolchain, "Path", lambda path: tmp_path / path.lstrip("/"))  # including Debian's packages
    with pytest.raises(SystemExit, match=r"no libcudart_static.a .*PAL_FAST_CUDA=pypi"):
        toolchain.static_runtime(tmp_path)
    library = tmp_path / "targets/sbsa-linux/lib/libcudart_static.a"
    library.parent.mkdir(parents=True)
    library.touch()
    assert toolchain.static_runtime(tmp_path) == str(library)


#: Runs setup.py as if on another machine, and prints the extensions, their file and the wheel's tag.
DESCRIBE = """
import sys, sysconfig
import setuptools, setuptools.command.bdist_wheel, setuptools.command.build_ext
sys.platform, free_threaded = sys.argv[1:]
variable = sysconfig.get_config_var
sysconfig.get_config_var = lambda name: int(free_threaded) if name == "Py_GIL_DISABLED" else variable(name)
given = {}
setuptools.setup = lambda **settings: given.update(settings)
sys.argv = ["setup.py"]
exec(compile(open("setup.py").read(), "setup.py", "exec"), {"__file__": "setup.py"})
about = setuptools.Distribution({"name": "pal_fast", "version": "0", "ext_modules": given["ext_modules"]})
wheel = given["cmdclass"]["bdist_wheel"](about)
wheel.ensure_finalized()
built = given["cmdclass"]["build_ext"](about)
print([built.get_ext_filename(extension.name) for extension in given["ext_modules"]], "-".join(wheel.get_tag()[:2]))
"""


def build_description(*, platform: str = "linux", free_threaded: bool = False, **variables: str) -> str:
    if not satisfied(requirements("build-system")["setuptools"]):
        pytest.skip("the build needs a newer setuptools")
    command = [sys.executable, "-c", DESCRIBE, platform, str(int(free_threaded))]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PAL_FAST_")} | variables
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_every_python_gets_the_same_extension_in_a_wheel_it_accepts():
    assert build_description() == "['pal_fast/_C.abi3.so'] cp310-abi3"
    assert build_description(free_threaded=True) == "['pal_fast/_C.abi3.so'] py3-none"


@pytest.mark.parametrize("machine", [{"platform": "win32"}, {"PAL_FAST_EXTENSION": "0"}], ids=["Windows", "asked for"])
def test_the_python_part_needs_no_compiler(machine):
    assert build_description(**machine).startswith("[] py3-none")


def test_an_unknown_cuda_mode_is_refused():
    with pytest.raises(AssertionError, match="PAL_FAST_CUDA must be auto, 0, 1 or pypi, not 'yes'"):
        build_description(PAL_FAST_CUDA="yes")


@pytest.mark.parametrize("instructions", ["avx2", "avx512"])
def test_clang_and_gcc_compile_for_the_same_instruction_set(instructions):
    """clang ignores GCC's pragma, and applies its own only to the functions between push and pop."""
    text = re.sub(r"\\\n\s*", "", (ROOT / f"csrc/cpu/target_{instructions}.h").read_text())
    (gcc,) = re.findall(r'^#pragma GCC target\("(.+)"\)$', text, re.MULTILINE)
    (clang,) = re.findall(
        r'^#pragma clang attribute push\(__attribute__\(\(target\("(.+)"\)\)\), .+$', text, re.MULTILINE
    )
    assert clang.split(",") == [feature for feature in gcc.split(",") if not feature.startswith("prefer-")]
    sources = sorted((ROOT / "csrc/cpu").glob(f"*/{instructions}.cpp"))
    assert len(sources) == 2
    for source in sources:
        last = re.findall(r'^#include "cpu/(?:\w+/)?(\w+\.h)"$', source.read_text(), re.MULTILINE)[1:]
        assert last == [f"target_{instructions}.h", "instances.h", "target_end.h"]


@pytest.mark.skipif(shutil.which("clang++") is None, reason="clang is not installed")
@pytest.mark.parametrize("name", ["batch_norm/avx2", "batch_norm/avx512", "instruction_set"])
def test_clang_compiles_the_vector_kernels_and_their_dispatch(name, tmp_path):
    import torch.utils.cpp_extension as torch_build

    include = [f"-I{folder}" for folder in (ROOT / "csrc", *torch_build.include_paths())]
    command = ["clang++", "-c", "-fPIC", "-std=c++20", f"-DTORCH_TARGET_VERSION={0x020A << 48}", *include]
    command += ["-o", str(tmp_path / "object.o"), str(ROOT / f"csrc/cpu/{name}.cpp")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

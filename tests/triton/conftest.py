"""Tests that take `device` run twice: in the interpreter, in a separate process, and on a GPU if there is one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.interpreter import Interpreter
from support.triton_compile import PROCESSORS

_interpreter = Interpreter()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        metafunc.parametrize(
            "device", [pytest.param("cpu", id="interpreter"), pytest.param("cuda", marks=pytest.mark.gpu)]
        )


@pytest.fixture(scope="session", autouse=True)
def _stop_interpreter() -> Iterator[None]:
    yield
    _interpreter.stop()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    if arguments.get("device") != "cpu":
        return None
    failure = _interpreter.run(pyfuncitem.function, arguments, pyfuncitem.funcargs["seed"])
    if failure:
        pytest.fail(f"in the interpreting process:\n{failure}", pytrace=False)
    return True


@pytest.fixture
def for_an_h100(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host plans for an H100's multiprocessors."""
    from pal_fast.kernels import launch

    monkeypatch.setattr(launch, "INTERPRETED_PROCESSORS", PROCESSORS)

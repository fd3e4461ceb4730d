"""A process in which triton interprets its kernels on the CPU, started once; test functions run inside it.

Triton decides at its first import whether it interprets, so a test process that may have imported it already, or will
compile with it, cannot do this.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import random
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def _load(path: Path) -> ModuleType:
    name = f"interpreted_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def _serve(connection: Connection) -> None:
    import numpy as np
    import torch

    torch.set_num_threads(1)
    # For test modules' own functions, and `benchmarks`. Last, so that the tree's pal_fast hides no installed one.
    sys.path.append(str(ROOT))
    # Fresh memory holds NaN, so that any output that a kernel does not write is noticed.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    from support.interpreter_probe import why_not

    connection.send(why_not())
    while (task := connection.recv()) is not None:
        path, name, arguments, seed = task
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            getattr(_load(path), name)(**arguments)
            connection.send("")
        except BaseException:
            connection.send(traceback.format_exc())


class Interpreter:
    """`run` calls a function of a test file in the interpreting process and returns its traceback, or ""."""

    def __init__(self) -> None:
        self._process: Any = None
        self._why_not = ""

    def run(self, function: Callable[..., None], arguments: dict[str, Any], seed: int, timeout: float = 120.0) -> str:
        if self._process is None and not self._why_not:
            self._start()
        if self._why_not:
            pytest.skip(self._why_not)
        self._connection.send((Path(function.__code__.co_filename), function.__name__, arguments, seed))
        if not self._connection.poll(timeout):
            self.stop()
            return f"no answer within {timeout} s"
        try:
            answer: str = self._connection.recv()
        except EOFError:
            answer = f"the interpreting process died with status {self._process.exitcode}"
            self.stop()
        return answer

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        before = os.environ.get("TRITON_INTERPRET")
        os.environ["TRITON_INTERPRET"] = "1"
        try:
            self._process.start()
        finally:
            if before is None:
                del os.environ["TRITON_INTERPRET"]
            else:
                os.environ["TRITON_INTERPRET"] = before
        theirs.close()
        self._why_not = self._connection.recv()
        if self._why_not:
            self.stop()

"""Two processes that form a gloo group and run functions together, started once for many tests."""

from __future__ import annotations

import os
import queue
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from support.triton_namesake import hide

Task = tuple[Callable[..., None], tuple[Any, ...], int]


def _serve(rank: int, store: str, tasks: Any, answers: Any) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    hide()
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    while (task := tasks.get()) is not None:
        function, arguments, seed = task
        torch.manual_seed(seed)
        try:
            function(rank, *arguments)
            answers.put((rank, ""))
        except Exception:
            answers.put((rank, traceback.format_exc()))
    dist.destroy_process_group()


class Pair:
    """`run` calls a function in both processes at once, the same seed in each, and raises what it raised there.

    The function must be importable. After a failure the processes are started afresh, because the other one may wait
    for ever.
    """

    def __init__(self) -> None:
        self._processes: list[Any] = []

    def run(self, function: Callable[..., None], *arguments: Any, seed: int, timeout: float = 120.0) -> None:
        if not self._processes:
            self._start()
        for tasks in self._tasks:
            tasks.put((function, arguments, seed))
        for _ in self._tasks:
            try:
                rank, failure = self._answers.get(timeout=timeout)
            except queue.Empty:
                self.stop()
                raise AssertionError(f"no answer within {timeout} s") from None
            if failure:
                self.stop()
                raise AssertionError(f"in process {rank}:\n{failure}")

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._processes = []

    def _start(self) -> None:
        context = mp.get_context("spawn")
        self._answers = context.Queue()
        self._tasks = [context.Queue(), context.Queue()]
        store = os.path.join(tempfile.mkdtemp(), "store")
        for rank, tasks in enumerate(self._tasks):
            arguments = (rank, store, tasks, self._answers)
            self._processes.append(context.Process(target=_serve, args=arguments, daemon=True))
            self._processes[-1].start()

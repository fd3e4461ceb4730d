"""The Python overhead of PALLoss over a bare double backward: hooks, checks and dispatch, in microseconds per call.

    python -m benchmarks.overhead

Both sides run the same operators on a network so small that Python dominates: forward, gradient with
`create_graph=True`, the loss, backward. The bare side has a network without hooks, and calls the loss's operator with
precomputed arguments. Rounds alternate, and the thread's CPU time is measured, so that other processes matter less.
Without compile, DDP or autocast.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pal_fast import PALLoss, dispatch, ops, reference
from pal_fast.options import AttributionOptions, HeatmapOptions, LossOptions

from . import machine, results_csv
from .arguments import DIRECTORY

#: Limit on the added time per call, on an idle machine.
LIMIT_US = 100.0
NAME = "overhead_cpu.csv"


def steps(backend: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """(bare, with PALLoss): one training step's gradients each, on the same small network."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3))
    hooked = copy.deepcopy(plain)
    images, landmarks = torch.randn(2, 3, 8, 8), torch.rand(2, 68, 2) * 8
    body, head = plain[:2], plain[2:]
    options = LossOptions(AttributionOptions(), HeatmapOptions())

    def loss_of(f: Tensor, g: Tensor) -> Tensor:
        if backend == "reference":
            h = reference.landmark_heatmap(landmarks, (6, 6), image_size=(8, 8), sigma=0.5)
            annotated = reference.valid_landmarks(landmarks, None).any(1)
            return reference.pal_loss(f, g, h, annotated=annotated, channel_count=4)
        namespace = dispatch.namespace(backend, f.device)
        return ops.pal_loss(namespace, f, g, None, landmarks, None, None, None, (8, 8), options, 4)

    def bare() -> None:
        plain.zero_grad()
        f = body(images)
        logits = head(f)
        (g,) = torch.autograd.grad(logits, f, torch.ones_like(logits), create_graph=True)
        loss_of(f, g).backward()

    def with_loss() -> None:
        hooked.zero_grad()
        pal(hooked(images), landmarks).backward()

    pal = PALLoss(hooked, "1", backend=backend)
    return bare, with_loss


def measure(backend: str, rounds: int = 30, calls: int = 20) -> tuple[float, float]:
    """Medians over rounds of the bare step and of PALLoss's, in microseconds."""
    bare, with_loss = steps(backend)
    times: dict[Callable[[], None], list[float]] = {bare: [], with_loss: []}
    for index in range(rounds + 3):
        for step in (bare, with_loss):
            start = time.thread_time()
            for _ in range(calls):
                step()
            if index >= 3:
                times[step].append((time.thread_time() - start) / calls * 1e6)
    return statistics.median(times[bare]), statistics.median(times[with_loss])


def main(words: Sequence[str] | None = None) -> int:
    """Returns 1 if a backend adds more than `LIMIT_US`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--output", type=Path, default=DIRECTORY, help="directory for the CSV")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    environment = machine.environment(torch.device("cpu"))  # before the measurement, for the load
    records: list[dict[str, object]] = []
    for backend in ("cpu", "reference"):
        reason = dispatch.why_not(backend, torch.device("cpu"))
        if reason:
            print(f"{backend:<10} unavailable: {reason}")
            continue
        bare, with_loss = measure(backend, args.rounds)
        added = with_loss - bare
        print(f"{backend:<10} bare {bare:.0f} us, PALLoss {with_loss:.0f} us, added {added:.0f} us of {LIMIT_US:.0f}")
        records.append(
            {"backend": backend, "bare_us": round(bare), "with_pal_us": round(with_loss), "added_us": round(added)}
            | {"rounds": args.rounds, **environment}
        )
    results_csv.write_rows(args.output / NAME, list(records[0]), records)
    return 0 if all(float(str(record["added_us"])) <= LIMIT_US for record in records) else 1


if __name__ == "__main__":
    raise SystemExit(main())

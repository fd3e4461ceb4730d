"""Checks that need a GPU, one per process: `python -m benchmarks.gpu_check.probes launches|repeat|graph`.

Prints one JSON object per line: the claim and whether it holds. Status 1 if any does not. `gpu_check` runs them all.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import pal_fast
from pal_fast import dispatch
from pal_fast.constants import CHANNELS
from pal_fast.messages import first_line

from ..profiling import kernels_of

#: (B, C, H, W) of the layer that the probes use, in float32.
SHAPE = (16, 512, 14, 14)


@dataclass(frozen=True)
class Finding:
    claim: str
    holds: bool
    detail: str = ""


@dataclass
class Problem:
    """One call of the loss, and its gradients, on one backend."""

    backend: str
    activation: Tensor
    gradient: Tensor
    arguments: dict[str, Any]

    def loss(self) -> Tensor:
        return pal_fast.pal_loss(self.activation, self.gradient, **self.arguments, backend=self.backend)

    def __call__(self) -> tuple[Tensor, ...]:
        loss = self.loss()
        gradients = torch.autograd.grad(loss, (self.activation, self.gradient), torch.ones_like(loss))
        return loss.detach(), *gradients


def problem(
    backend: str,
    device: torch.device,
    *,
    dense: bool = False,
    channels_last: bool = False,
    **options: Any,
) -> Problem:
    generator = torch.Generator(device).manual_seed(5)

    def normal() -> Tensor:
        values = torch.randn(SHAPE, generator=generator, device=device)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return values.contiguous(memory_format=layout).requires_grad_()

    prior: dict[str, Any] = {"image_size": 224}
    prior["landmarks"] = torch.rand(SHAPE[0], 68, 2, generator=generator, device=device) * 224
    if dense:
        prior = {"heatmap": torch.rand(SHAPE[0], *SHAPE[2:], generator=generator, device=device)}
    return Problem(backend, normal(), normal(), {**prior, **options})


def backends_on(device: torch.device) -> list[str]:
    """The compiled backends and triton, if they run there."""
    return [name for name in ("cuda", "cpu", "triton") if not dispatch.why_not(name, device)]


def launches(device: torch.device) -> Iterator[Finding]:
    """One launch forward and one backward, for every strategy and prior, without the host waiting for the device."""
    for backend, channels, dense in itertools.product(backends_on(device), CHANNELS, (False, True)):
        one = problem(backend, device, channels=channels, dense=dense)
        one()  # compiles, and fills the caches between calls
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            one()
            waited = ""
        except RuntimeError as error:
            waited = first_line(error)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        prior = "heatmap" if dense else "landmarks"
        yield Finding(f"{backend}, {channels}, from {prior}: the host never waits", not waited, waited)
        forward, loss = kernels_of(one.loss)
        upstream = torch.ones_like(loss)
        backward, _ = kernels_of(functools.partial(torch.autograd.grad, loss, (one.activation, one.gradient), upstream))
        for mode, names in (("forward", forward), ("backward", backward)):
            seen = "; ".join(names) or "the profiler saw none at all"
            yield Finding(f"{backend}, {channels}, from {prior}: one launch {mode}", len(names) == 1, seen)


def repeat(device: torch.device, times: int, seconds: float = math.inf) -> Iterator[Finding]:
    """The same bits every time: a race between blocks would show. Every configuration gets a share of the time."""
    configurations = list(itertools.product(backends_on(device), CHANNELS, (False, True)))
    end = time.perf_counter() + seconds
    for index, (backend, channels, channels_last) in enumerate(configurations):
        mine = time.perf_counter() + (end - time.perf_counter()) / (len(configurations) - index)
        one = problem(backend, device, channels=channels, channels_last=channels_last)
        first, different = [bits(t) for t in one()], torch.zeros((), dtype=torch.int64, device=device)
        done = count = 0
        while done < times and (not done or time.perf_counter() < mine):
            for _ in range(min(50, times - done)):
                for a, b in zip(first, one(), strict=True):
                    different += (a != bits(b)).any()  # on the device, so that calls follow without a gap
                done += 1
            count = int(different)
        layout = "channels_last" if channels_last else "contiguous"
        asked = "" if done == times else f", of {times} for which there was no time"
        yield Finding(
            f"{backend}, {channels}, {layout}: the same bits {done} times{asked}", count == 0, f"{count} differ"
        )


def bits(tensor: Tensor) -> Tensor:
    """The bits as integers, which distinguish 0 from -0 and compare NaN as equal."""
    return tensor.detach().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def graph(device: torch.device) -> Iterator[Finding]:
    """Captured in a CUDA graph and replayed on new values, forward and backward give the eager results."""
    for backend, channels in itertools.product(backends_on(device), CHANNELS):
        claim = f"{backend}, {channels}: a CUDA graph replays it"
        one = problem(backend, device, channels=channels)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                one()
        torch.cuda.current_stream().wait_stream(stream)
        try:
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                results = one()
        except RuntimeError as error:
            yield Finding(claim, False, first_line(error))
            continue
        wrong = 0
        for _ in range(10):
            with torch.no_grad():
                one.activation.normal_()
                one.gradient.normal_()
            captured.replay()
            torch.cuda.synchronize()
            wrong += sum(not torch.equal(a, b) for a, b in zip(results, one(), strict=True))
        yield Finding(claim, wrong == 0, f"{wrong} of 30 results differ from the eager ones")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check.probes", description=__doc__)
    parser.add_argument("probe", choices=("launches", "repeat", "graph"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--times", type=int, default=10_000, help="of repeat")
    parser.add_argument("--seconds", type=float, default=math.inf, help="time limit of repeat")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(json.dumps(asdict(Finding("a GPU is there", False, "PyTorch sees no CUDA GPU"))))
        return 1
    findings = {
        "launches": lambda: launches(device),
        "repeat": lambda: repeat(device, options.times, options.seconds),
        "graph": lambda: graph(device),
    }[options.probe]()
    held, count = True, 0
    for finding in findings:
        print(json.dumps(asdict(finding)), flush=True)
        held, count = held and finding.holds, count + 1
    return 0 if held and count else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""One set-up per subject for speed and memory, forward, backward and both; wrong results are not timed.

A subject has cases and peers. For every case each peer is prepared, compared with its judge (the float64 reference, or
the peer's own definition) and only then measured. Peers and a memory copy take turns, so that a change of clock or load
affects all of them; shares and ratios are of medians of the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import machine
from .lost_device import note_of, recover
from .timing import Call, peak_memory, quantile, timer_of

MODES = ("forward", "backward", "both")

#: Bounds from DESIGN 4 on the relative L2 error against the float64 reference.
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


class UnavailableError(Exception):
    """This peer cannot run here, or cannot run this case; the message says why."""


@dataclass
class Prepared:
    """A peer ready to run. Gradients are taken with respect to `inputs`; empty for a peer without gradients."""

    forward: Callable[[], Tensor]
    inputs: Sequence[Tensor] = ()


@dataclass(frozen=True)
class Peer:
    """One way to compute the subject.

    `judge` and `bound`: the peer's own definition, if it differs from the subject's, and its error bound.
    `package`: the package it comes from, for the version.
    """

    name: str
    prepare: Callable[[Any, torch.device], Prepared]
    judge: Callable[[Any, torch.device], list[Tensor]] | None = None
    bound: float | None = None
    package: str = ""
    note: str = ""


@dataclass(frozen=True)
class Subject:
    """What is measured. `judge` returns the output and the gradients with respect to the inputs in float64.

    `traffic` and `work`: the bytes that a mode must move and the floating-point operations it must do, or None.
    """

    name: str
    peers: Sequence[Peer]
    cases: Callable[[torch.device, bool], Sequence[Any]]  # frozen dataclasses; `columns()`: their part of a CSV's row
    judge: Callable[[Any, torch.device], list[Tensor]]
    bound: Callable[[Any], float]
    traffic: Callable[[Any, str], int | None] = lambda case, mode: None
    work: Callable[[Any, str], int | None] = lambda case, mode: None
    yardstick: str = "copy"  # or "write": the rate of the machine that shares refer to
    launches: bool = False  # on a GPU: whether the host's launch time counts


@dataclass
class Row:
    """One mode of one peer of one case. Unmeasured figures are None, and `note` says why."""

    case: Any
    peer: str
    mode: str
    milliseconds: tuple[float, float, float] | None = None  # p20, p50, p80
    ratio: float | None = None  # of the first peer's median to this one's: times faster
    traffic: int | None = None
    work: int | None = None
    yardstick: str = ""
    machine_rate: float | None = None  # bytes per second of the yardstick, in the same rounds
    peak_bytes: int | None = None  # beyond the inputs and their gradients
    error: float | None = None
    bound: float | None = None
    version: str = ""
    note: str = ""

    @property
    def rate(self) -> float | None:
        """Required bytes per second."""
        return None if self.milliseconds is None or self.traffic is None else self.traffic / self.milliseconds[1] * 1e3

    @property
    def share(self) -> float | None:
        """`rate` as a share of the yardstick's."""
        return None if self.rate is None or self.machine_rate is None else self.rate / self.machine_rate


@dataclass
class _Running:
    row: Row
    call: Call
    seconds: list[float] = field(default_factory=list)


def measure(subject: Subject, case: Any, device: torch.device, rounds: int, quick: bool = False) -> list[Row]:
    """Measures every peer of one case in every mode. A peer that fails gets a note with the reason; the others go on.

    Raises: LostDeviceError if none can.
    """
    rows: list[Row] = []
    running: list[_Running] = []
    judged: dict[Any, list[Tensor]] = {}
    for peer in subject.peers:
        mine = [
            Row(case, peer.name, mode, version=machine.version(peer.package) if peer.package else "", note=peer.note)
            for mode in MODES
        ]
        rows += mine
        try:
            prepared = peer.prepare(case, device)
            judge = peer.judge or subject.judge
            if judge not in judged:
                judged[judge] = judge(case, device)
            error = check(prepared, judged[judge])
            for row in mine:
                running += _accepted(row, prepared, error, subject, peer)
        except UnavailableError as reason:
            for row in mine:
                row.note = str(reason)
        except Exception as error:
            running = [entry for entry in running if entry.row.peer != peer.name]
            _note_failure(error, mine, device)
    judged.clear()
    for entry in list(running):
        try:
            entry.row.peak_bytes = peak_memory(entry.call, device)
        except Exception as error:
            running.remove(entry)
            _note_failure(error, [entry.row], device)
    take_turns(running, subject, device, rounds, quick)
    return rows


def _accepted(row: Row, prepared: Prepared, error: float, subject: Subject, peer: Peer) -> list[_Running]:
    """The call to time for a row; none if the result is wrong or has no gradient."""
    row.error, row.bound = error, subject.bound(row.case) if peer.bound is None else peer.bound
    if not error <= row.bound:  # NaN is wrong, too
        row.note = f"wrong: differs by {error:.1e}, bound {row.bound:.1e}"
        return []
    if row.mode != "forward" and not prepared.inputs:
        row.note = row.note or "it has no gradient"
        return []
    row.traffic, row.work = subject.traffic(row.case, row.mode), subject.work(row.case, row.mode)
    return [_Running(row, call_of(prepared, row.mode))]


def _note_failure(error: Exception, failed: Sequence[Row], device: torch.device) -> None:
    """Raises: LostDeviceError if the GPU no longer responds."""
    for row in failed:
        row.note = note_of(error)
    recover(failed[0].peer, error, device)


def call_of(prepared: Prepared, mode: str) -> Call:
    """The call for one mode. Backward alone runs on a fresh graph each time, as in training."""
    inputs = list(prepared.inputs)

    upstream = upstream_of(prepared.forward())

    def differentiate(output: Tensor) -> Any:
        return torch.autograd.grad(output, inputs, upstream)

    if mode == "forward":
        return Call(lambda _: prepared.forward())
    if mode == "both":
        return Call(lambda _: differentiate(prepared.forward()))
    return Call(differentiate, prepared.forward)


def upstream_of(output: Tensor) -> Tensor:
    """The upstream gradient of an output: 1 for a scalar, else a ramp, so that nothing cancels."""
    if output.ndim == 0:
        return torch.ones_like(output)
    ramp = torch.linspace(-1, 1, max(1, output.numel()), dtype=torch.float64, device=output.device)
    return ramp[: output.numel()].reshape(output.shape).to(output.dtype)


def check(prepared: Prepared, wanted: list[Tensor]) -> float:
    """The largest relative L2 error of the output and, if the peer has them, the gradients."""
    output = prepared.forward()
    found = [output]
    if prepared.inputs:
        found += torch.autograd.grad(output, list(prepared.inputs), upstream_of(output))
    return max(relative_error(value, judge) for value, judge in zip(found, wanted, strict=False))


def relative_error(value: Tensor, wanted: Tensor) -> float:
    """||value - wanted|| / ||wanted|| in float64; for a scalar, which may cancel, the denominator is at least 0.1."""
    if value.shape != wanted.shape:
        return float("nan")
    value, wanted = value.detach().double(), wanted.detach().to(value.device)
    size = wanted.norm().clamp(min=0.1 if wanted.ndim == 0 else 1e-300)
    return ((value - wanted).norm() / size).item()


def take_turns(running: list[_Running], subject: Subject, device: torch.device, rounds: int, quick: bool) -> None:
    """Times the calls and the yardstick, round by round, and fills the rows."""
    if not running:
        return
    rulers, moved = [], 0
    if any(entry.row.traffic is not None for entry in running):
        run, moved = machine.YARDSTICKS[subject.yardstick](device, quick)
        rulers.append(_Running(running[0].row, Call(lambda _: run())))
    timer = timer_of(device, subject.launches)
    entries = [*running, *rulers]
    for turn in range(rounds + 2):
        for entry in list(entries):
            try:
                seconds = timer(entry.call)
            except Exception as error:
                if entry in rulers:
                    raise
                entries.remove(entry)
                entry.seconds.clear()
                _note_failure(error, [entry.row], device)
                continue
            if turn >= 2:  # the first two warm up
                entry.seconds.append(seconds)
    machine_rate = moved / quantile(rulers[0].seconds, 0.5) if rulers else None
    first: dict[str, float] = {}
    for entry in running:
        if not entry.seconds:
            continue
        row = entry.row
        p20, p50, p80 = (quantile(entry.seconds, q) for q in (0.2, 0.5, 0.8))
        row.milliseconds = 1e3 * p20, 1e3 * p50, 1e3 * p80
        row.yardstick, row.machine_rate = (subject.yardstick, machine_rate) if rulers else ("", None)
        row.ratio = first.setdefault(row.mode, p50) / p50

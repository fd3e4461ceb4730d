"""The cost of a training step with the attribution loss, against the plain step and other ways to write it.

    python -m benchmarks.step                 the whole table on a GPU; the small one on a CPU
    python -m benchmarks.step --quick         one small case, seconds
    python -m benchmarks.step --case resnet18:layer3:112:16:float32

A time is shown only if the gradients are right, judged by the formula in eager PyTorch (`Naive`) in two ways. In
float64, on two images, they agree to 1e-6: the step computes the right thing. In the timed dtype, their error is at
most twice the change in PyTorch's own gradients when the memory format, and the attention kernel below the layer,
change: a deep random network amplifies rounding (ReLU masks flip), so right gradients differ by 1e-2 between kernels,
and a fixed bound would either reject right steps or accept wrong ones. Both errors and that bound are in the CSV. On a
GPU, float32 means PyTorch's default, TF32 in convolutions, for the steps, the judge and the bound alike.

The steps of a case take turns, so that a change of clock or load affects all of them; the ratio is the median of
the rounds' ratios.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch._inductor.exc import InductorError

from pal_fast.constants import BACKENDS
from pal_fast.messages import first_line

from .. import machine, results_csv
from ..arguments import DIRECTORY
from ..command import broken_of
from ..deadline import Deadline
from ..harness import UnavailableError
from ..lost_device import LOST, LostDeviceError, note_of, recover
from ..profiling import calls_of, peak_of
from ..results_csv import rounded
from ..timing import quantile, seconds_of
from .cases import (
    PAL,
    Captum,
    Case,
    Naive,
    Plain,
    Prepared,
    Step,
    head_share,
)
from .compiled import CompiledNaive, CompiledPAL, CompiledPrepared, Graphed
from .judge import EXACT, Judge

LAYERS = {
    "resnet50": ("layer3", "layer2", "layer4"),
    "vgg16": ("features.29", "features.22"),  # conv5_3 and conv4_3 with their ReLU
    "vit_small": ("blocks.7",),
}
#: Ordered so that a short run has a layer of each network, first at the two batch sizes between which targets differ.
_BATCHES = [
    (64, torch.bfloat16), (16, torch.bfloat16), (64, torch.float32),
    (16, torch.float32), (256, torch.bfloat16), (256, torch.float32),
]  # fmt: skip
GPU_CASES = [
    Case(model, layer, 224, batch, dtype)
    for chosen in (lambda layers: layers[:1], lambda layers: layers[1:])
    for batch, dtype in _BATCHES
    for model, layers in LAYERS.items()
    for layer in chosen(layers)
]
CPU_CASES = [
    Case("resnet18", "layer3", 112, 16, torch.float32),
    Case("resnet18", "layer2", 112, 16, torch.float32),
    Case("resnet50", "layer3", 112, 8, torch.float32),
]
QUICK_CASES = [Case("resnet18", "layer3", 64, 2, torch.float32)]

VARIANTS: dict[str, type[Step]] = {
    "plain": Plain,
    "naive": Naive,
    "captum": Captum,
    "PALLoss": PAL,
    "prepare_head": Prepared,
    "compiled naive": CompiledNaive,
    "compiled naive, prepare_head": CompiledPrepared,
    "compiled PALLoss, prepare_head": CompiledPAL,
    "graphed": Graphed,
}
#: Variants that need no compiler, which takes minutes per case.
EAGER = [name for name in VARIANTS if "compiled" not in name]
MEASURED = (
    "model", "layer", "image", "batch", "dtype", "variant", "ms", "ms_p20", "ms_p80", "ratio", "one_plus_h",
    "peak_mb", "calls", "float64_error", "gradient_error", "gradient_bound",
    "note", "loss_backend",
)  # fmt: skip
COLUMNS = (*MEASURED, *machine.COLUMNS)


@dataclass
class Row:
    """One variant of one case. Unmeasured figures are None, and `note` says why."""

    case: Case
    variant: str
    one_plus_h: float
    milliseconds: tuple[float, float, float] | None = None  # p20, p50, p80
    ratio: float | None = None
    peak_bytes: int | None = None
    calls: int | None = None
    exact_error: float | None = None
    error: float | None = None
    bound: float | None = None
    note: str = ""


def measure_case(case: Case, device: torch.device, variants: Sequence[str], rounds: int) -> list[Row]:
    torch._dynamo.reset()  # every step is recompiled, and the compiler gives up after eight of the same function
    one_plus_h = 1 + head_share(case)
    rows = {name: Row(case, name, one_plus_h) for name in variants}
    steps: dict[str, Step] = {}
    judge = Judge(device)
    for name, row in rows.items():
        try:
            step = _checked(row, judge, device)
        except UnavailableError as reason:
            row.note = str(reason)
        except InductorError as error:  # not checked, so no time is shown
            row.note = f"the compiler failed: {first_line(error)[:80]}"
        except Exception as error:
            note_failure(row, error, device)
        else:
            if step is not None:
                steps[name] = step
    times = take_turns(steps, rows, device, rounds)
    for name, taken in times.items():
        p20, p50, p80 = (1e3 * quantile(taken, q) for q in (0.2, 0.5, 0.8))
        rows[name].milliseconds = p20, p50, p80
        if "plain" in times:
            rows[name].ratio = statistics.median(t / p for t, p in zip(taken, times["plain"], strict=True))
    return list(rows.values())


def _checked(row: Row, judge: Judge, device: torch.device) -> Step | None:
    """The row's step, after recording its peak memory and calls; None, and a note, if its gradients are wrong."""
    kind = VARIANTS[row.variant]
    row.exact_error, _ = judge(kind(replace(row.case, batch=2, dtype=torch.float64), device))
    step = kind(row.case, device)
    row.error, row.bound = judge(step)
    if not row.exact_error <= EXACT:
        row.note = f"wrong: gradients in float64 differ by {row.exact_error:.1e}"
        return None
    if not row.error <= row.bound:
        row.note = f"wrong: gradients differ by {row.error:.1e}, bound {row.bound:.1e}"
        return None
    step.model.zero_grad(set_to_none=True)
    if not step.replayed:
        row.peak_bytes = peak_of(step, device)
    if device.type == "cuda" or step.watchable:
        row.calls = calls_of(step, device)
    else:
        row.note = "calls of a compiled step can only be counted on a GPU"
    return step


def note_failure(row: Row, error: Exception, device: torch.device) -> None:
    """A variant that fails does not stop the others. Raises: LostDeviceError if the GPU no longer responds."""
    row.note = note_of(error)
    recover(row.variant, error, device)


def take_turns(
    steps: dict[str, Step], rows: dict[str, Row], device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each step in each round; a step that fails is dropped, with a note in its row."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 2):
        for name in list(times):
            try:
                seconds = seconds_of(steps[name], device)
            except Exception as error:
                del times[name]
                note_failure(rows[name], error, device)
                continue
            if turn >= 2:  # the first two warm up
                times[name].append(seconds)
    return times


def as_record(row: Row, environment: Mapping[str, object]) -> dict[str, object]:
    p20, p50, p80 = row.milliseconds or (None, None, None)
    values = (
        row.case.model, row.case.layer, row.case.image, row.case.batch, row.case.dtype_name, row.variant,
        rounded(p50, 3), rounded(p20, 3), rounded(p80, 3), rounded(row.ratio, 4), rounded(row.one_plus_h, 4),
        rounded(None if row.peak_bytes is None else row.peak_bytes / 1e6, 1), row.calls,
        _exponent(row.exact_error), _exponent(row.error), _exponent(row.bound),
        row.note, PAL.backend or "fastest",
    )  # fmt: skip
    return {**dict(zip(MEASURED, values, strict=True)), **environment}


def _exponent(value: float | None) -> str | None:
    return None if value is None else f"{value:.1e}"


def print_rows(rows: Sequence[Row]) -> None:
    print(f"\n{rows[0].case}    1 + h = {rows[0].one_plus_h:.3f}")
    headings = f"{'ms':>9}{'ratio':>8}{'/(1+h)':>8}{'peak MB':>10}{'calls':>8}"
    print(f"  {'':30}{headings}{'f64 error':>11}{'error':>9}{'bound':>9}")
    for row in rows:
        if row.milliseconds is None:
            print(f"  {row.variant:30}{'':>9} {row.note}")
            continue
        ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
        over = "" if row.ratio is None else f"{row.ratio / row.one_plus_h:.3f}"
        peak = "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.1f}"
        print(
            f"  {row.variant:30}{row.milliseconds[1]:9.2f}{ratio:>8}{over:>8}{peak:>10}{row.calls or '':>8}"
            f"{row.exact_error:>11.1e}{row.error:>9.1e}{row.bound:>9.1e}"
        )


def parse_case(text: str) -> Case:
    try:
        model, layer, image, batch, dtype = text.split(":")
        return Case(model, layer, int(image), int(batch), {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype])
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"must be MODEL:LAYER:IMAGE:BATCH:float32|bfloat16, got {text!r}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__.split("\n")[0])
    parser.add_argument("--case", type=parse_case, action="append", help="MODEL:LAYER:IMAGE:BATCH:DTYPE, repeatable")
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, help="default all; with --quick, those that need no compiler"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backend", choices=BACKENDS, help="backend of PALLoss (default the fastest)")
    parser.add_argument("--rounds", type=int, help="timed rounds (default 20; quick 3)")
    parser.add_argument("--quick", action="store_true", help="one small case")
    parser.add_argument("--seconds", type=float, help="start no case that would end later (default: every case)")
    parser.add_argument("--without", nargs="+", choices=VARIANTS, default=[], help="variants to leave out")
    parser.add_argument("--output", type=Path, help="the CSV (default benchmarks/results/step_DEVICE.csv; quick: none)")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    PAL.backend = options.backend
    cases = options.case or (QUICK_CASES if options.quick else GPU_CASES if device.type == "cuda" else CPU_CASES)
    chosen = options.variants or (EAGER if options.quick else list(VARIANTS))
    variants = [name for name in chosen if name not in options.without]
    rounds = options.rounds or (3 if options.quick else 20)
    output = options.output or (None if options.quick else DIRECTORY / f"step_{device.type}.csv")
    environment = machine.environment(device)
    records: list[dict[str, object]] = []
    deadline, measured = Deadline(options.seconds), 0
    for case in cases:
        if not deadline.allows_another():
            break
        try:
            rows = measure_case(case, device, variants, rounds)
        except LostDeviceError as error:
            print(error)
            return LOST
        except ImportError as error:  # the network's library
            print(f"{case}: {error}")
            continue
        measured += 1
        print_rows(rows)
        records += [as_record(row, {**environment, "load": machine.load()}) for row in rows]
        if output is not None:  # after each case, so that an interrupted run keeps its results
            results_csv.write_rows(output, COLUMNS, records)
    broken = broken_of(records, "variant")
    print(f"\nstep: {measured} of {len(cases)} cases in {deadline.taken:.0f} s{broken}")
    return 1 if broken else 0

"""The paper's ablation: attribution x channels x layer x weight against the baseline, with several seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from pal_fast.files import check_writable
from pal_fast.messages import first_few, first_line
from pal_fast.training import checkpoint, machine
from pal_fast.training.config import TrainingConfig
from pal_fast.training.initial_weights import begin
from pal_fast.training.networks import make_twice_differentiable
from pal_fast.training.run_folder import RunFolder
from pal_fast.training.set_up import open_splits, try_out
from pal_fast.training.sweep_folder import earlier_runs, note_failure, noted_failures, run_folder, with_layers_there
from pal_fast.training.sweep_plan import Condition, Plan, Run
from pal_fast.training.sweep_table import write_tables
from pal_fast.training.trainer import DivergedError, train

#: Errors that fail one condition or run, while others may succeed.
CANNOT_TRAIN: Final = (ValueError, TypeError, OSError, ImportError, RuntimeError)


def configs(base: TrainingConfig, plan: Plan) -> dict[Run, TrainingConfig]:
    """Every run's config, all conditions of a seed before the next seed, so that an incomplete sweep is balanced.

    The baseline is given all layers, to measure its alignment at each; its training does not depend on them.
    """
    layers = tuple(plan.layers) or replace(base, weight=1.0).resolved().layer
    made: dict[Run, TrainingConfig] = {}
    for seed in plan.seeds:
        for condition in plan.conditions(layers):
            changes = {"weight": 0.0, "layer": layers}
            if condition.weight:
                changes = {
                    "attribution": condition.attribution,
                    "channels": condition.channels,
                    "layer": (condition.layer,),
                    "weight": condition.weight,
                }
            made[Run(condition, seed)] = replace(base, seed=seed, **changes).resolved()  # type: ignore[arg-type]
    return made


@dataclass(frozen=True)
class Swept:
    """The result of a sweep.

    Attributes:
        table: Markdown table of all complete runs in the folder; "" in all processes but the first.
        failed: why runs of this call failed, by run.
    """

    table: str
    failed: dict[Run, str]


def sweep(
    base: TrainingConfig,
    plan: Plan,
    output: str | Path,
    *,
    shard: tuple[int, int] = (1, 1),
    say: Callable[[str], None] = print,
) -> Swept:
    """Trains the missing runs, and after each writes table.md, table.csv and runs.csv of all that exist.

    These include runs of earlier calls with other conditions or seeds, if their options equal those of `base` except
    for what a sweep varies. Holm's correction covers all conditions in the table.

    A sweep may be stopped at any time and called again. Call it in every process that torchrun started; several
    machines that share `output` take a shard each. Before the first run every condition is tried on a step of noise. A
    run that fails is reported and marked in the tables, and the others go on; the next call tries it again.

    Args:
        base: the config of every run; the options that the plan varies are replaced.
        output: a folder; each run has its own folder below runs/.
        shard: (i, n), i from 1: run only every n-th run, starting with the i-th.

    Raises: ValueError for conditions that cannot be trained, and for runs in `output` that have other options; else as
        `train`, before the first run. With several processes also what one of them alone fails of later, since the
        others wait for it.
    """
    index, count = shard
    if not 1 <= index <= count:
        raise ValueError(f"shard must be (i, n) with i from 1 to n, got {shard}")
    output = Path(output)
    runs = configs(base, plan)
    folders = {run: run_folder(output, run) for run in runs}
    data = checkpoint.describe_data(base)
    earlier = earlier_runs(output, base, runs, data)
    runs = with_layers_there(runs, output, earlier.runs.values())
    for run, config in runs.items():
        checkpoint.check_folder(folders[run], config)
        checkpoint.check_data(folders[run], data, config)
    if machine.is_main():
        check_writable(output / "table.md", makes_folder=True)
    check_conditions({run: config for run, config in runs.items() if not folders[run].result.exists()})
    if machine.is_main():
        say(_extent(folders))
        if earlier.runs:
            say(f"the tables also include {len(earlier.runs)} runs of earlier calls: {_names(earlier.runs)}")
        for name, why in earlier.foreign.items():
            say(f"not in the tables: {name}: {why}")

    def write() -> str:
        tabulated = folders | earlier_runs(output, base, runs, data).runs
        return write_tables(output, tabulated, noted_failures(output, tabulated))

    failed: dict[Run, str] = {}
    for number, (run, config) in enumerate(runs.items()):
        if number % count != index - 1 or folders[run].result.exists():
            continue
        if machine.is_main():
            say(f"run {number + 1} of {len(runs)}: {run.name}")
        try:
            train(config, folders[run].path, say=say)
        except CANNOT_TRAIN as error:
            if not (isinstance(error, DivergedError) or machine.is_alone()):
                raise
            failed[run] = first_line(error)
            if machine.is_main():
                say(f"failed: {run.name}: {failed[run]}")
        if machine.is_main():
            note_failure(output, run, failed.get(run))
            write()
    return Swept(write() if machine.is_main() else "", failed)


def _names(runs: dict[Run, RunFolder]) -> str:
    return first_few([run.name for run in runs], 3)


def _extent(folders: dict[Run, RunFolder]) -> str:
    conditions = dict.fromkeys(run.condition.name for run in folders)
    seeds = dict.fromkeys(str(run.seed) for run in folders)
    done = sum(folder.result.exists() for folder in folders.values())
    return (
        f"{len(folders)} runs: {', '.join(conditions)}; seeds {', '.join(seeds)}"
        f"{f'; {done} are there already' if done else ''}"
    )


def check_conditions(runs: dict[Run, TrainingConfig]) -> None:
    """Tries each condition on one step of noise. Raises: ValueError listing those that cannot be trained, and why."""
    conditions: dict[Condition, TrainingConfig] = {}
    for run, config in runs.items():
        conditions.setdefault(run.condition, config)
    if not conditions:
        return
    # The loss has stricter requirements for the landmarks than the baseline.
    strictest = max(conditions.values(), key=lambda config: config.weight)
    assert strictest.size is not None
    accelerator = machine.make_accelerator(strictest.device, strictest.precision)
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), machine.deterministic(strictest.deterministic):
        splits = open_splits(strictest, strictest.size, accelerator)
        beginning = begin(
            strictest.model,
            len(splits.classes),
            strictest.size,
            pretrained=strictest.pretrained,
            weights=strictest.weights,
        )
        network = beginning.network.to(accelerator.device)
        make_twice_differentiable(network, strictest.model)
        reasons: dict[str, list[str]] = {}
        for condition, config in conditions.items():
            try:
                try_out(config, network, splits, strictest.size, accelerator)
            except CANNOT_TRAIN as error:
                reasons.setdefault(first_line(error), []).append(condition.name)
    if reasons:
        number = sum(map(len, reasons.values()))
        listed = "; ".join(f"{first_few(names, 3)}: {why}" for why, names in reasons.items())
        raise ValueError(f"{number} of {len(conditions)} conditions cannot be trained, so no run is started: {listed}")

"""The paper's ablation: attribution x channels x layer x weight against the baseline, with several seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pal_fast.training import machine
from pal_fast.training.config import TrainingConfig
from pal_fast.training.files import RunFolder
from pal_fast.training.plan import Plan, Run
from pal_fast.training.sweep_table import write_tables
from pal_fast.training.trainer import DivergedError, train


def configs(base: TrainingConfig, plan: Plan) -> dict[Run, TrainingConfig]:
    """Every run's config, all conditions of a seed before the next seed, so that a part of a sweep is balanced.

    The baseline is given all layers, where its alignment is measured; nothing of its training depends on them.
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


def sweep(
    base: TrainingConfig,
    plan: Plan,
    output: str | Path,
    *,
    shard: tuple[int, int] = (1, 1),
    say: Callable[[str], None] = print,
) -> str:
    """Trains what is not there yet, then writes table.md, table.csv and runs.csv of all that is.

    A sweep may be stopped at any time and called again. Call it in every process that torchrun started; several
    machines that share `output` take a shard each.

    Args:
        base: of every run; what the plan varies is replaced.
        output: a folder; each run has its own below runs/.
        shard: (i, n): run only every n-th, from the i-th on, i from 1.

    Returns: the table, in Markdown.

    Raises: as `train`. A run whose loss stops being finite is reported, and the others go on.
    """
    index, count = shard
    if not 1 <= index <= count:
        raise ValueError(f"shard must be i/n with i from 1 to n, such as 2/8, got {index}/{count}")
    output = Path(output)
    runs = configs(base, plan)
    diverged: list[str] = []
    for number, (run, config) in enumerate(runs.items()):
        folder = RunFolder(output / "runs" / run.name)
        if number % count != index - 1 or folder.result.exists():
            continue
        if machine.is_main():
            say(f"run {number + 1} of {len(runs)}: {run.name}")
        try:
            train(config, folder.path, say=say)
        except DivergedError as error:
            diverged.append(f"{run.name}: {error}")
    if not machine.is_main():
        return ""
    text = write_tables(output, {run: RunFolder(output / "runs" / run.name) for run in runs})
    for line in diverged:
        say(f"not in the table: {line}")
    return text

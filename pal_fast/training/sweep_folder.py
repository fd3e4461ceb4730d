"""What earlier calls of a sweep left in its folder: runs, reasons for failures, and the layers of baselines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pal_fast.files import write_text
from pal_fast.training import checkpoint
from pal_fast.training.config import TrainingConfig
from pal_fast.training.run_folder import RunFolder
from pal_fast.training.sweep_plan import VARIED, Condition, Run

#: The subfolder that records why runs failed.
FAILURES: Final = "failures"


def run_folder(output: Path, run: Run) -> RunFolder:
    return RunFolder(output / "runs" / run.name)


@dataclass(frozen=True)
class Earlier:
    """Runs in a sweep's folder that are not in the plan of the current call.

    Attributes:
        runs: complete or failed runs that agree with this call in everything that a sweep does not vary.
        foreign: why other runs are excluded, by folder name.
    """

    runs: dict[Run, RunFolder]
    foreign: dict[str, str]


def earlier_runs(output: Path, base: TrainingConfig, planned: Iterable[Run], data: dict[str, Any]) -> Earlier:
    """Finds the runs of earlier calls. Args: data: from `checkpoint.describe_data`. Raises: ValueError, OSError."""
    names = {run.name for run in planned}
    failed = {place.stem for place in (output / FAILURES).glob("*.txt")}
    found = Earlier({}, {})
    for place in sorted((output / "runs").glob("*/config.json")):
        folder = RunFolder(place.parent)
        name = folder.path.name
        if name in names or not (folder.result.exists() or name in failed):
            continue
        there = TrainingConfig.from_mapping(folder.read_json(place), str(place))
        run = _run_of(there)
        expected = replace(base, **{option: getattr(there, option) for option in VARIED}).resolved()
        try:
            checkpoint.check_folder(folder, expected)
            checkpoint.check_data(folder, data, expected)
            if run.name != name:
                raise ValueError(f"its options are those of {run.name}")
        except ValueError as error:
            found.foreign[name] = str(error)
        else:
            found.runs[run] = folder
    return found


def _run_of(config: TrainingConfig) -> Run:
    if not config.weight:
        return Run(Condition(), config.seed)
    layer = "+".join(config.layer)  # several layers match no condition of a sweep and none of its folder names
    return Run(Condition(config.attribution, config.channels, layer, config.weight), config.seed)


def with_layers_there(
    configs: Mapping[Run, TrainingConfig], output: Path, earlier: Iterable[RunFolder]
) -> dict[Run, TrainingConfig]:
    """The configs, with baselines that are also measured at the layers of the baselines of earlier calls.

    A call with fewer layers can then reuse the existing baselines, and the baselines it adds cover all layers. An
    existing baseline that lacks a layer of this call keeps its config here, and is later rejected for it.
    """
    folders = {run: run_folder(output, run) for run in configs if not run.condition.weight}
    measured = {folder.path: _layers(folder) for folder in [*folders.values(), *earlier]}
    every = tuple(dict.fromkeys(layer for layers in measured.values() for layer in layers))
    made = dict(configs)
    for run, folder in folders.items():
        wanted, own = configs[run].layer, measured[folder.path]
        if not own:
            made[run] = replace(configs[run], layer=tuple(dict.fromkeys((*wanted, *every))))
        elif set(wanted) <= set(own):
            made[run] = replace(configs[run], layer=own)
    return made


def _layers(folder: RunFolder) -> tuple[str, ...]:
    """The layers of the baseline in a folder; () for none."""
    if not folder.config.exists():
        return ()
    config = TrainingConfig.from_mapping(folder.read_json(folder.config), str(folder.config))
    return () if config.weight else config.layer


def note_failure(output: Path, run: Run, failure: str | None) -> None:
    """Records why a run failed, for the tables that other shards write, too; None removes the record."""
    place = output / FAILURES / f"{run.name}.txt"
    if failure is None:
        place.unlink(missing_ok=True)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    write_text(place, f"{failure}\n")


def noted_failures(output: Path, runs: Iterable[Run]) -> dict[Run, str]:
    places = {run: output / FAILURES / f"{run.name}.txt" for run in runs}
    return {run: place.read_text(encoding="utf-8").strip() for run, place in places.items() if place.is_file()}
